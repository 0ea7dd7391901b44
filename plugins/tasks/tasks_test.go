package tasks

import (
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/anypb"
)

func TestLifeOfTask(t *testing.T) {
	a := newAgent()
	f := newFixture(t, a)
	task := f.create("c")
	f.must(task.Start(f.ctx))
	if s, err := task.State(f.ctx); err != nil || s.Status != runtime.RunningStatus || s.Pid != 42 {
		t.Errorf("state %+v, %v", s, err)
	}
	a.exit("c", 7, true)
	if e := f.wait(task); e.Status != 7 || e.Timestamp.IsZero() {
		t.Errorf("exit %+v", e)
	}
	if e, err := f.Delete(f.ctx, "c"); err != nil || e.Status != 7 {
		t.Errorf("delete: %+v, %v", e, err)
	}
	f.awaitEvents("create", "start", "exit", "delete")
	f.noRecords()
	if _, err := f.Get(f.ctx, "c"); !errdefs.IsNotFound(err) {
		t.Errorf("get: %v", err)
	}
}

// A process may have ended before the answer to Start is here.
func TestExitDoesNotOvertakeStart(t *testing.T) {
	a := newAgent()
	a.onStart = func(a *agent) { a.exit("c", 0, true) }
	f := newFixture(t, a)
	task := f.create("c")
	f.must(task.Start(f.ctx))
	f.wait(task)
	f.awaitEvents("create", "start", "exit")
}

func TestExitIsLearnedFromNextAgent(t *testing.T) {
	a := newAgent()
	f := newFixture(t, a)
	task := f.create("c")
	f.must(task.Start(f.ctx))
	f.disconnect()
	a.exit("c", 3, false)
	f.connect(a) // another connection to what the same containers are in
	if e := f.wait(task); e.Status != 3 {
		t.Errorf("exit %+v", e)
	}
	f.awaitEvents("create", "start", "exit")
}

func TestTaskThatNextAgentDoesNotKnow(t *testing.T) {
	f := newFixture(t, newAgent())
	task := f.create("c")
	f.must(task.Start(f.ctx))
	f.disconnect()
	f.connect(newAgent())
	if e := f.wait(task); e.Status != unknownStatus {
		t.Errorf("exit %+v", e)
	}
}

func TestSandboxDies(t *testing.T) {
	f := newFixture(t, newAgent())
	task := f.create("c")
	f.must(task.Start(f.ctx))
	f.memory.Last().End(1)
	f.disconnect()
	if e := f.wait(task); e.Status != killedStatus {
		t.Errorf("exit %+v", e)
	}
	if _, err := f.Delete(f.ctx, "c"); err != nil {
		t.Errorf("delete without an agent: %v", err)
	}
	f.noRecords()
}

func TestRestart(t *testing.T) {
	a := newAgent()
	f := newFixture(t, a)
	runs, ends, ended := f.create("runs"), f.create("ends"), f.create("ended")
	for _, task := range []runtime.Task{runs, ends, ended} {
		f.must(task.Start(f.ctx))
	}
	a.exit("ended", 1, true)
	f.wait(ended)

	f.disconnect()
	a.exit("ends", 2, false)
	f.connect(a)
	f.open()
	tasks, err := f.Tasks(f.ctx, false)
	f.must(err)
	if len(tasks) != 3 {
		t.Fatalf("%d tasks, want 3", len(tasks))
	}
	for id, want := range map[string]runtime.State{
		"runs":  {Status: runtime.RunningStatus},
		"ends":  {Status: runtime.StoppedStatus, ExitStatus: 2},
		"ended": {Status: runtime.StoppedStatus, ExitStatus: 1},
	} {
		task, err := f.Get(f.ctx, id)
		f.must(err)
		got, err := task.State(f.ctx)
		f.must(err)
		if got.Status != want.Status || got.ExitStatus != want.ExitStatus || got.Pid != 42 {
			t.Errorf("%s: state %+v, want %+v", id, got, want)
		}
	}
	f.awaitEvents("exit") // of what ended meanwhile: the other was told of
}

func TestHalfMadeTaskIsRemovedAtRestart(t *testing.T) {
	a := newAgent()
	f := newFixture(t, a)
	task := f.create("c").(*Task)
	f.must(task.save(func(s *saved) { s.Phase = creating }))
	f.disconnect()
	a.exit("c", 137, false)
	f.connect(a)
	f.open()
	if _, err := f.Get(f.ctx, "c"); !errdefs.IsNotFound(err) {
		t.Errorf("get: %v", err)
	}
	f.noRecords()
	if len(a.processes) > 0 {
		t.Error("the agent still has it")
	}
}

// An exit may be learned of when the task is removed already.
func TestErasedRecordStaysErased(t *testing.T) {
	a := newAgent()
	f := newFixture(t, a)
	task := f.create("c").(*Task)
	a.exit("c", 1, false)
	f.must(task.discard(f.ctx))
	task.exited(exit{Status: 1})
	f.noRecords()
}

func TestBadInput(t *testing.T) {
	f := newFixture(t, newAgent())
	for name, c := range map[string]struct {
		opts  runtime.CreateOpts
		class func(error) bool
		says  string
	}{
		"no spec":    {runtime.CreateOpts{SandboxID: "pod"}, errdefs.IsInvalidArgument, "no spec"},
		"no process": {with(`{"root":{"path":"x"}}`), errdefs.IsInvalidArgument, "no process"},
		"no rootfs":  {with(`{"process":{"args":["true"]}}`), errdefs.IsInvalidArgument, "no rootfs"},
		"no JSON":    {with(`{`), errdefs.IsInvalidArgument, "decode spec"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.Create(f.ctx, "c", c.opts)
			if !c.class(err) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v", err)
			}
			f.noRecords()
		})
	}
	if _, err := f.Create(f.ctx, "c", options("someone else's")); err == nil || err.Error() != "stock creates c" {
		t.Errorf("task of another sandbox: %v", err)
	}
	f.create("c")
	if _, err := f.Create(f.ctx, "c", options("pod")); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second task of a name: %v", err)
	}
}

func with(spec string) runtime.CreateOpts {
	o := options("pod")
	o.Spec = &anypb.Any{Value: []byte(spec)}
	return o
}

func TestCreateInStoppedSandbox(t *testing.T) {
	f := newFixture(t, newAgent())
	f.must(f.sandbox.Stop(f.ctx, "pod"))
	if _, err := f.Create(f.ctx, "c", options("pod")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("error %v", err)
	}
}
