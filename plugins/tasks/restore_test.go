package tasks

import (
	"testing"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
)

func (r *rig) get(id string) runtime.Task {
	r.Helper()
	t, err := r.Get(r.ctx, id)
	r.must(err)
	return t
}

func TestRestart(t *testing.T) {
	r := newRig(t)
	r.create("made")
	r.run("runs")
	r.run("ends")
	ended := r.run("ended")
	r.agent.exit("ended", "", 1)
	ended.(*Task).recordTold(exit{Status: r.wait(ended).Status, At: exitTime}) // as it is about to be
	r.crash(func() { r.agent.exit("ends", "", 2) })
	list, err := r.Tasks(r.ctx, false)
	r.must(err)
	if len(list) != 5 {
		t.Fatalf("%d tasks, want 4 and the stock one", len(list))
	}
	for id, want := range map[string]runtime.State{
		"made":  {Status: runtime.CreatedStatus, Pid: 101},
		"runs":  {Status: runtime.RunningStatus, Pid: 102},
		"ends":  {Status: runtime.StoppedStatus, Pid: 103, ExitStatus: 2, ExitedAt: exitTime},
		"ended": {Status: runtime.StoppedStatus, Pid: 104, ExitStatus: 1, ExitedAt: exitTime},
	} {
		want.Stdout, want.Stderr = "/fifo/out", "/fifo/err"
		if got := r.state(r.get(id)); got != want {
			t.Errorf("%s: state %+v, want %+v", id, got, want)
		}
	}
	// The exit of the other was told by the daemon before.
	r.log.want("exit ends 2")
	r.must(r.get("made").Start(r.ctx))
	r.agent.exit("runs", "", 3)
	r.wait(r.get("runs"))
	for _, id := range []string{"runs", "ends", "ended"} {
		_, err := r.Delete(r.ctx, id)
		r.must(err)
		r.clean(id)
	}
	r.log.want("exit ends 2", "start made", "exit runs 3", "delete runs 3", "delete ends 2", "delete ended 1")
}

func TestHalfMadeTaskIsRemovedAtRestart(t *testing.T) {
	r := newRig(t)
	c := r.create("c").(*Task)
	r.must(c.save(func(s *saved) { s.Phase = creating }))
	r.crash(nil)
	if _, err := r.Get(r.ctx, "c"); !errdefs.IsNotFound(err) {
		t.Errorf("get: %v", err)
	}
	r.clean("c")
	r.run("c")
	// The former daemon may have told of the one before.
	r.log.want("exit c 137", "delete c 137", "create c", "start c")
}
