package tasks

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/runtime"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// A process's exit that comes late is not taken for that of the next one with
// its id.
func TestExitOfAFormerProcess(t *testing.T) {
	r := newRig(t)
	stale := func(exec string, pid uint32) func() {
		return func() {
			r.agent.mu.Lock()
			defer r.agent.mu.Unlock()
			r.agent.publish(&api.Event{Namespace: space, ContainerId: "c", Event: &api.Event_Exit{
				Exit: &api.ProcessExit{ExecId: exec, Pid: pid, Exit: &api.Exit{Status: 9}},
			}})
		}
	}
	first := r.run("b")
	r.agent.on("create", stale("", 1))
	c := r.create("c")
	stale("", 1)()
	r.must(c.Start(r.ctx))
	r.agent.on("start", stale("e", 2))
	e := r.exec(c, "e")
	r.agent.on("start", nil)
	stale("e", 2)()
	// Another's exit tells that what came before it has arrived.
	r.exec(c, "f")
	r.agent.exit("c", "f", 0)
	r.log.want("create b", "start b", "create c", "start c", "exec-added c/e", "exec-started c/e", "exec-added c/f", "exec-started c/f", "exit c/f 0")
	for _, p := range []runtime.Process{first, c, e} {
		if s := r.state(p); s.Status != runtime.RunningStatus {
			t.Errorf("state of %s: %+v", p.ID(), s)
		}
	}
}

// killedAt restarts the daemon with the record that a task had when an event
// was published, as if it had been killed at that moment.
func (r *rig) killedAt(event string, f func()) {
	r.Helper()
	path := filepath.Join(r.dir, "tasks", space, "c.json")
	var raw []byte
	var err error
	r.log.when(event, func() { raw, err = os.ReadFile(path) })
	f()
	r.must(err)
	r.crash(func() { r.must(os.WriteFile(path, raw, 0o600)) })
}

// A daemon that is killed at an event tells of it again, or of the end of what
// it was about.
func TestKilledAtEvent(t *testing.T) {
	t.Run("create", func(t *testing.T) {
		r := newRig(t)
		r.killedAt("create c", func() { r.create("c") })
		r.log.want("exit c 137", "delete c 137")
		r.clean("c")
	})
	t.Run("exit", func(t *testing.T) {
		r := newRig(t)
		r.killedAt("exit c 3", func() {
			c := r.run("c")
			r.agent.exit("c", "", 3)
			r.wait(c)
		})
		r.log.want("exit c 3")
	})
	t.Run("delete", func(t *testing.T) {
		r := newRig(t)
		r.killedAt("delete c 3", func() {
			c := r.run("c")
			r.agent.exit("c", "", 3)
			r.wait(c)
			_, err := r.Delete(r.ctx, "c")
			r.must(err)
		})
		r.log.want("delete c 3")
		r.clean("c")
	})
}
