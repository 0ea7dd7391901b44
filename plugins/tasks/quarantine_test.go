package tasks

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/runtime"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
)

// A sandboxer that could not start says nothing about its sandboxes, whose
// containers run on.
func TestSandboxerThatIsLeftOut(t *testing.T) {
	for name, change := range map[string]func(*saved){
		"named":   func(*saved) {},
		"unnamed": func(s *saved) { s.Sandboxer = "" },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.must(r.run("c").(*Task).save(change))
			r.absent = true
			r.crash(nil)
			r.unavailable("c")
			if n := r.mounts.count("c"); n != 1 {
				t.Errorf("mounts are active %d times", n)
			}
			r.absent = false
			r.crash(nil)
			if s := r.state(r.get("c")); s.Status != runtime.RunningStatus || s.Pid != 101 {
				t.Errorf("state with it: %+v", s)
			}
		})
	}
}

// A sandbox that its sandboxer does not know is gone, and its tasks with it.
func TestSandboxThatIsGone(t *testing.T) {
	r := newRig(t)
	r.run("c")
	r.crash(func() {
		r.agent.lose("c", "")
		r.must(os.RemoveAll(filepath.Join(r.dir, "boxes", podID)))
		delete(r.pods.prepared, "c")
	})
	r.clean("c")
}

// unavailable holds that a task is found and says nothing of itself.
func (r *rig) unavailable(id string) {
	r.Helper()
	if _, err := r.get(id).State(r.ctx); !errdefs.IsUnavailable(err) {
		r.Errorf("state of %s: %v", id, err)
	}
}

// quarantine restarts the daemon with a sandbox that cannot be reopened.
func (r *rig) quarantine() {
	r.Helper()
	r.crash(func() { r.pods.failing("restore", errors.New("injected")) })
	r.unavailable("c")
}

// Whoever asks for a task that was not restored has it tried again.
func TestQuarantineEnds(t *testing.T) {
	for name, ask := range map[string]func(*rig) error{
		"get": func(r *rig) error { return r.get("c").Kill(r.ctx, 9, true) },
		"delete": func(r *rig) error {
			r.agent.exit("c", "", 137)
			_, err := r.Delete(r.ctx, "c")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.run("c")
			r.quarantine()
			if _, err := r.Delete(r.ctx, "c"); !errdefs.IsUnavailable(err) {
				t.Errorf("delete: %v", err)
			}
			r.pods.failing("restore", nil)
			r.must(ask(r))
			r.log.await(1)
			if name == "get" {
				_, err := r.Delete(r.ctx, "c")
				r.must(err)
			}
			r.clean("c")
			r.log.want("exit c 137", "delete c 137")
		})
	}
}

// A sandbox that is recovered for another's sake brings its tasks back.
func TestQuarantineEndsForAnother(t *testing.T) {
	r := newRig(t)
	r.run("c")
	r.quarantine()
	r.pods.failing("restore", nil)
	r.agent.exit("c", "", 4)
	_, err := r.boxes.Recover(r.ctx, podID)
	r.must(err)
	r.log.want("exit c 4")
}

// The end of a task that CRI reads no output of is not hidden from who wants it.
func TestKillLiftsTheVeil(t *testing.T) {
	r := newRig(t)
	r.runCRI("c")
	r.quarantine()
	r.pods.failing("restore", nil)
	c := r.get("c")
	r.must(c.Kill(r.ctx, 9, true))
	if e := r.wait(c); e.Status != 137 {
		t.Errorf("exit %+v", e)
	}
}

// Who moves a sandbox's directory away has given up its tasks, once they have
// ended.
func TestGivenUp(t *testing.T) {
	r := newRig(t)
	r.must(r.boxes.Create(r.ctx, core.Sandbox{ID: "other"}))
	_, err := r.boxes.Start(r.ctx, "other")
	r.must(err)
	defer func() {
		r.must(r.Close())
		r.must(r.boxes.Shutdown(r.ctx, "other"))
	}()
	opts := createOpts(plainSpec)
	opts.SandboxID = "other"
	_, err = r.Create(r.ctx, "d", opts) // of the same agent
	r.must(err)
	r.run("c")
	dir := filepath.Join(r.dir, "boxes", podID)
	r.crash(func() { r.must(os.WriteFile(filepath.Join(dir, "state.json"), []byte("{"), 0o600)) })
	r.unavailable("c")
	r.must(os.Rename(dir, filepath.Join(t.TempDir(), podID)))
	r.unavailable("c")
	r.crash(nil)
	r.unavailable("c")
	if !r.agent.has("c", "") {
		t.Error("a container that runs was removed")
	}
	r.agent.exit("c", "", 9)
	delete(r.pods.prepared, "c") // as who gave it up has
	if c, err := r.Get(r.ctx, "c"); !errdefs.IsNotFound(err) {
		_, why := c.State(r.ctx)
		t.Errorf("get: %v, and its state is %v", err, why)
	}
	r.clean("c")
}

// A damaged record is as good as given up when it is moved away.
func TestRecordMovedAway(t *testing.T) {
	r := newRig(t)
	r.run("c")
	path := filepath.Join(r.dir, "tasks", space, "c.json")
	good, err := os.ReadFile(path)
	r.must(err)
	r.crash(func() { r.must(os.WriteFile(path, []byte("{"), 0o600)) })
	r.unavailable("c")
	r.must(os.Remove(path))
	if _, err := r.Get(r.ctx, "c"); !errdefs.IsNotFound(err) {
		t.Errorf("get: %v", err)
	}
	r.crash(func() { r.must(os.WriteFile(path, good, 0o600)) })
	if s := r.state(r.get("c")); s.Status != runtime.RunningStatus {
		t.Errorf("state with the record back: %+v", s)
	}
}

// A task that cannot be restored must not look as if it had ended.
func TestDamagedRecord(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "ns"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ns", "c1.json"), []byte(`{"vers`), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx := namespaces.WithNamespace(t.Context(), "ns")
	r, err := New(ctx, Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	found, err := r.Get(ctx, "c1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := found.State(ctx); !errdefs.IsUnavailable(err) {
		t.Errorf("state: got %v, want what containerd does not take for an end", err)
	}
	if err := found.Kill(ctx, 9, true); err == nil {
		t.Error("a task that is not understood is killed")
	}
	if _, err := os.Stat(filepath.Join(dir, "ns", "c1.json")); err != nil {
		t.Error(err)
	}
}
