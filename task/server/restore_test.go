package server

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/task/hold"
	"github.com/containerd-kuasar/containerd-kuasar/task/wire"
)

// put writes the record of a former agent's process.
func (r *rig) put(id, exec string, v saved) {
	r.Helper()
	c := newContainer(r.cfg.Dir, key{"ns", id}, nil, saved{})
	if err := os.MkdirAll(filepath.Join(c.dir, "runtime"), 0o700); err != nil {
		r.Fatal(err)
	}
	if err := record.Write(newProcess(c, exec, v).path(), &v); err != nil {
		r.Fatal(err)
	}
}

// alive makes a process for a record, and its pidfd as the daemon holds it.
func (r *rig) alive(id string) (v saved, fd *os.File) {
	r.Helper()
	s, err := r.runtime.spawn(id)
	if err != nil {
		r.Fatal(err)
	}
	start, err := pidfd.StartTime(s.Pid)
	if err != nil {
		r.Fatal(err)
	}
	if fd, err = pidfd.Open(s.Pid, start); err != nil {
		r.Fatal(err)
	}
	return saved{Status: running, Pid: s.Pid, Start: start, Stdout: id}, fd
}

func TestRestore(t *testing.T) {
	r := newRig(t)
	held := map[string]*os.File{}

	first, fd := r.alive("held")
	held[hold.Key("ns", "held", "", hold.Pidfd)] = fd
	r.put("held", "", first)
	exec, fd := r.alive("held")
	r.put("held", "e", exec)
	fd.Close()
	r.put("held", "lost", saved{Status: running})
	r.put("held", "added", saved{Status: created, Spec: json.RawMessage("{}")})
	r.put("held", "done", saved{Status: stopped, Pid: 99, Exit: &pidfd.Exit{Status: 6}})

	byNumber, fd := r.alive("number")
	fd.Close()
	byNumber.Status = created
	r.put("number", "", byNumber)

	r.put("died", "", saved{Status: running, Pid: byNumber.Pid, Start: 1}) // the number is another's now
	r.put("stopped", "", saved{Status: stopped, Pid: 99, Exit: &pidfd.Exit{Status: 5}})
	r.put("begun", "", saved{Status: created})
	r.put("image", "", saved{Status: created, Checkpoint: "/image", OptionsURL: "full"})
	r.put("restoring", "", saved{Status: running, Checkpoint: "/image", OptionsURL: "full"})
	if err := os.MkdirAll(filepath.Join(r.cfg.Dir, "ns", "empty", "runtime"), 0o700); err != nil {
		t.Fatal(err)
	}
	stale, _ := os.Open(os.DevNull)
	held["ns/gone//pidfd"] = stale
	r.holder.held["ns/gone//pidfd"] = true
	r.restore(held)

	for _, c := range []struct {
		id, exec string
		want     tasktypes.Status
	}{
		{"held", "", tasktypes.Status_RUNNING},
		{"held", "e", tasktypes.Status_RUNNING},
		{"held", "lost", tasktypes.Status_STOPPED},
		{"held", "added", tasktypes.Status_CREATED},
		{"held", "done", tasktypes.Status_STOPPED},
		{"number", "", tasktypes.Status_CREATED},
		{"stopped", "", tasktypes.Status_STOPPED},
		{"image", "", tasktypes.Status_CREATED},
	} {
		if got := r.status(c.id, c.exec); got != c.want {
			t.Errorf("%s %s is %v", c.id, c.exec, got)
		}
	}
	for _, id := range []string{"begun", "empty", "restoring"} {
		if _, err := r.State(r.ctx, &wire.StateRequest{Id: id}); !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", id, err)
		}
		if _, err := os.Stat(filepath.Join(r.cfg.Dir, "ns", id)); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", id, err)
		}
	}
	if r.runtime.count("delete") != 2 || r.runtime.count("start") != 1 {
		t.Errorf("calls: %v", r.runtime.calls)
	}
	if r.holder.holds("ns/gone//pidfd") {
		t.Error("what nobody needs is held")
	}

	for _, c := range []struct {
		id, exec string
		want     uint32
	}{{"stopped", "", 5}, {"held", "done", 6}, {"held", "lost", 255}, {"died", "", 255}} {
		if got := r.wait(c.id, c.exec); got != c.want {
			t.Errorf("%s %s exited with %d", c.id, c.exec, got)
		}
	}
	r.runtime.exit("held", 1, 8)
	r.runtime.exit("held", 0, 9)
	if e, c := r.wait("held", "e"), r.wait("held", ""); e != 8 || c != 9 {
		t.Errorf("exit status %d and %d", e, c)
	}
	r.start("number", "")
	r.runtime.exit("number", 0, 10)
	if got := r.wait("number", ""); got != 10 {
		t.Errorf("exit status %d", got)
	}
}

func TestRestoreLeavesAloneWhatItCannotRead(t *testing.T) {
	for name, spoil := range map[string]func(r *rig, dir string) error{
		"record": func(r *rig, dir string) error {
			return os.WriteFile(filepath.Join(dir, "task.json"), []byte("{"), 0o600)
		},
		"exec":    func(r *rig, dir string) error { return os.WriteFile(filepath.Join(dir, "exec-e.json"), nil, 0o600) },
		"runtime": func(r *rig, dir string) error { delete(r.cfg.Runtimes, ""); return nil },
		"release": func(r *rig, dir string) error {
			return os.WriteFile(filepath.Join(dir, "task.json"), []byte(`{"version":99}`), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			v, fd := r.alive("c")
			defer fd.Close()
			r.put("c", "", v)
			pty, err := os.Open(os.DevNull)
			if err != nil {
				t.Fatal(err)
			}
			held := map[string]*os.File{hold.Key("ns", "c", "", hold.Pty): pty}
			r.holder.held[hold.Key("ns", "c", "", hold.Pty)] = true
			dir := filepath.Join(r.cfg.Dir, "ns", "c")
			if err := spoil(r, dir); err != nil {
				t.Fatal(err)
			}
			r.restore(held)
			if _, err := r.State(r.ctx, &wire.StateRequest{Id: "c"}); !errdefs.IsUnavailable(err) {
				t.Errorf("state: %v", err)
			}
			if _, err := r.Delete(r.ctx, &wire.DeleteRequest{Id: "c"}); !errdefs.IsUnavailable(err) {
				t.Errorf("delete: %v", err)
			}
			list, err := r.List(r.ctx, &api.ListRequest{})
			if err != nil || len(list.Processes) != 1 || list.Processes[0].ContainerId != "c" || list.Processes[0].Status != api.Status_STATUS_UNSPECIFIED {
				t.Errorf("list: %v, %v", list, err)
			}
			if r.holder.count() != 1 {
				t.Error("its terminal hangs up")
			}
			if len(r.runtime.calls) != 0 || r.stdio.left() != 0 {
				t.Errorf("touched: %v, %d stdio", r.runtime.calls, r.stdio.left())
			}
			if running, err := pidfd.Running(fd); err != nil || !running {
				t.Errorf("process runs: %v, %v", running, err)
			}
			if name == "runtime" {
				return
			}
			_, err = r.Create(r.ctx, &wire.CreateTaskRequest{Id: "c", Bundle: r.bundle(false)})
			if !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), "move it away") {
				t.Errorf("create: %v", err)
			}
		})
	}
}

func TestRecordsOfAnotherBootAreHistory(t *testing.T) {
	r := newRig(t)
	r.put("c", "", saved{Status: running, Pid: os.Getpid()})
	path := filepath.Join(r.cfg.Dir, "ns", "c", "task.json")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b = []byte(strings.Replace(string(b), record.Boot(), "another", 1))
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	r.restore(nil)
	if r.files() != 0 || len(r.runtime.calls) != 0 {
		t.Errorf("left: %d files; calls: %v", r.files(), r.runtime.calls)
	}
}

func TestPausedIsAskedFor(t *testing.T) {
	for _, was := range []status{pausing, paused} {
		for _, is := range []bool{false, true} {
			r := newRig(t)
			f := &full{fake: r.runtime, paused: is}
			r.cfg.Runtimes["full"] = f
			v, fd := r.alive("c")
			v.Status, v.OptionsURL = was, "full"
			r.put("c", "", v)
			r.restore(map[string]*os.File{hold.Key("ns", "c", "", hold.Pidfd): fd})
			want := map[bool]tasktypes.Status{false: tasktypes.Status_RUNNING, true: tasktypes.Status_PAUSED}[is]
			if got := r.status("c", ""); got != want {
				t.Errorf("%s, paused %v: %v", was, is, got)
			}
		}
	}
}
