package tasks

import (
	"errors"
	"slices"
	"testing"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
)

func TestLife(t *testing.T) {
	r := newRig(t)
	c := r.create("c")
	if s := r.state(c); s.Status != runtime.CreatedStatus || s.Pid != 101 || s.Stdout != "/fifo/out" {
		t.Errorf("created: %+v", s)
	}
	if got := r.pods.container("c").Rootfs; len(got) != 1 || got[0].Source != "/activated" {
		t.Errorf("rootfs %v, want what the mount manager left to do", got)
	}
	if got := r.mounts.labels["containerd.io/gc.bref.container"]; got != "c" {
		t.Errorf("the active mounts belong to container %q", got)
	}
	r.must(c.Start(r.ctx))
	if s := r.state(c); s.Status != runtime.RunningStatus || s.Pid != 101 {
		t.Errorf("started: %+v", s)
	}
	r.agent.exit("c", "", 42)
	if e := r.wait(c); e.Status != 42 || !e.Timestamp.Equal(exitTime) || e.Pid != 101 {
		t.Errorf("exit %+v", e)
	}
	if s := r.state(c); s.Status != runtime.StoppedStatus || s.ExitStatus != 42 || !s.ExitedAt.Equal(exitTime) {
		t.Errorf("stopped: %+v", s)
	}
	e, err := r.Delete(r.ctx, "c")
	r.must(err)
	if e.Status != 42 || !e.Timestamp.Equal(exitTime) || e.Pid != 101 {
		t.Errorf("delete returns %+v", e)
	}
	r.clean("c")
	r.log.want("create c", "start c", "exit c 42", "delete c 42")
	created := r.log.full[0].(*apievents.TaskCreate)
	if created.Bundle != "/bundle/c" || created.Pid != 101 || created.IO.Stdout != "/fifo/out" || created.Rootfs[0].Source != "/image" {
		t.Errorf("create event %v", created)
	}
	exited := r.log.full[2].(*apievents.TaskExit)
	if exited.ID != "c" || exited.Pid != 101 || !exited.ExitedAt.AsTime().Equal(exitTime) {
		t.Errorf("exit event %v", exited)
	}
	r.run("c") // its id is free again
}

func TestExec(t *testing.T) {
	r := newRig(t)
	c := r.run("c")
	p := r.exec(c, "e")
	if s := r.state(p); s.Status != runtime.RunningStatus || s.Pid != 102 {
		t.Errorf("started: %+v", s)
	}
	if _, err := c.Exec(r.ctx, "e", runtime.ExecOpts{}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second exec of that id: %v", err)
	}
	if _, err := c.Exec(r.ctx, "../e", runtime.ExecOpts{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an exec with a bad id: %v", err)
	}
	if _, err := c.Process(r.ctx, "other"); !errdefs.IsNotFound(err) {
		t.Errorf("an unknown exec: %v", err)
	}
	if found, err := c.Process(r.ctx, "e"); err != nil || found != p {
		t.Errorf("found %v, %v", found, err)
	}
	r.agent.exit("c", "e", 3)
	if e := r.wait(p); e.Status != 3 {
		t.Errorf("exit %+v", e)
	}
	if err := p.Kill(r.ctx, 9, false); !errdefs.IsNotFound(err) {
		t.Errorf("kill an exited process: %v", err)
	}
	if e, err := p.Delete(r.ctx); err != nil || e.Status != 3 {
		t.Errorf("delete: %+v, %v", e, err)
	}
	if _, err := c.Process(r.ctx, "e"); !errdefs.IsNotFound(err) {
		t.Errorf("a deleted exec: %v", err)
	}
	r.log.want("create c", "start c", "exec-added c/e", "exec-started c/e", "exit c/e 3")
}

func TestControl(t *testing.T) {
	r := newRig(t)
	c := r.run("c")
	r.must(c.Pause(r.ctx))
	if s := r.state(c); s.Status != runtime.PausedStatus {
		t.Errorf("paused: %+v", s)
	}
	r.must(c.Resume(r.ctx))
	if s := r.state(c); s.Status != runtime.RunningStatus {
		t.Errorf("resumed: %+v", s)
	}
	r.must(c.Checkpoint(r.ctx, "/there", nil))
	r.must(c.Update(r.ctx, nil, nil))
	r.must(c.ResizePty(r.ctx, runtime.ConsoleSize{Width: 80, Height: 25}))
	r.must(c.CloseIO(r.ctx))
	if _, err := c.Stats(r.ctx); err != nil {
		t.Error(err)
	}
	if pids, err := c.Pids(r.ctx); err != nil || len(pids) != 1 || pids[0].Pid != 101 {
		t.Errorf("pids %v, %v", pids, err)
	}
	r.agent.oom("c")
	r.agent.oom("another's") // is nobody's business
	r.log.await(6)
	r.must(c.Kill(r.ctx, 15, false))
	if e := r.wait(c); e.Status != 143 {
		t.Errorf("exit %+v", e)
	}
	r.log.want("create c", "start c", "paused c", "resumed c", "checkpointed c", "oom c", "exit c 143")
}

func TestErrorsOfTheAgentKeepTheirClass(t *testing.T) {
	r := newRig(t)
	c := r.run("c")
	for _, class := range []error{errdefs.ErrFailedPrecondition, errdefs.ErrNotFound, errdefs.ErrInvalidArgument, errdefs.ErrNotImplemented} {
		for _, call := range []string{"pause", "resume", "checkpoint", "update", "stats", "pids", "kill", "resize", "close", "exec"} {
			r.agent.failing(call, class)
		}
		_, stats := c.Stats(r.ctx)
		_, pids := c.Pids(r.ctx)
		_, exec := c.Exec(r.ctx, "e", runtime.ExecOpts{})
		for call, err := range map[string]error{
			"pause": c.Pause(r.ctx), "resume": c.Resume(r.ctx), "checkpoint": c.Checkpoint(r.ctx, "", nil),
			"update": c.Update(r.ctx, nil, nil), "stats": stats, "pids": pids, "exec": exec,
			"kill": c.Kill(r.ctx, 9, false), "resize": c.ResizePty(r.ctx, runtime.ConsoleSize{}), "close": c.CloseIO(r.ctx),
		} {
			if !errors.Is(err, class) {
				t.Errorf("%s: %v, want %v", call, err, class)
			}
		}
	}
	r.log.want("create c", "start c")
}

func TestStockTasksAreLeftAlone(t *testing.T) {
	r := newRig(t)
	r.create("ours")
	for id, pod := range map[string]string{"alone": "", "foreign": "another's pod"} {
		opts := createOpts(plainSpec)
		opts.SandboxID = pod
		if _, err := r.Create(r.ctx, id, opts); err != nil {
			t.Error(err)
		}
	}
	if e, err := r.Delete(r.ctx, "theirs"); err != nil || e.Status != 77 {
		t.Errorf("delete: %+v, %v", e, err)
	}
	if _, err := r.Get(r.ctx, "theirs"); err != nil {
		t.Error(err)
	}
	if _, err := r.Get(r.ctx, "nobody's"); !errdefs.IsNotFound(err) {
		t.Errorf("get an unknown task: %v", err)
	}
	slices.Sort(r.stock.calls)
	if want := []string{"create alone", "create foreign", "delete theirs"}; !slices.Equal(r.stock.calls, want) {
		t.Errorf("calls of the stock runtime %q, want %q", r.stock.calls, want)
	}
	list, err := r.Tasks(r.ctx, false)
	r.must(err)
	var ids []string
	for _, t := range list {
		ids = append(ids, t.ID())
	}
	slices.Sort(ids)
	if want := []string{"ours", "theirs"}; !slices.Equal(ids, want) {
		t.Errorf("tasks %q, want %q", ids, want)
	}
}
