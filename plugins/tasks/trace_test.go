package tasks

import (
	"context"
	"errors"
	"testing"

	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
	"github.com/containerd-kuasar/containerd-kuasar/internal/trace/tracetest"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// Phases are those of the fake's calls: each is divided into as many as there is
// a use for.
func (a *agent) Phases(_ context.Context, r *api.PhasesRequest) (*api.PhasesResponse, error) {
	p, err := a.phases.Take(r.Call)
	if err == nil {
		p.Phases = []*api.Phase{{Name: "process", End: p.Took}}
	}
	return p, err
}

// The phases of a container's life are all in the traces of the calls that it
// consists of.
func TestTrace(t *testing.T) {
	r := newRig(t)
	background := r.ctx
	call := func(f func(), want string) *tracetest.Recording {
		t.Helper()
		ctx, recording := tracetest.Start(background, t)
		r.ctx = ctx
		defer func() { r.ctx = background }()
		f()
		recording.Want(want)
		return recording
	}
	created := call(func() { r.create("c") }, `task.Create
  agent.Create
    agent.process
  agent.Info
`)
	c, err := r.Get(r.ctx, "c")
	r.must(err)
	started := call(func() { r.must(c.Start(r.ctx)) }, `task.Start
  agent.Start
    agent.process
`)
	call(func() { r.exec(c, "e") }, `task.Exec
  agent.Exec
task.Start
  agent.Start
    agent.process
`)
	r.agent.exit("c", "", 0)
	r.wait(c)
	call(func() {
		_, err := r.Delete(r.ctx, "c")
		r.must(err)
	}, `task.Delete
  agent.Delete
`)
	set := map[string]string{}
	for _, a := range created.Find("task.Create").Attributes() {
		set[string(a.Key)] = a.Value.AsString()
	}
	if set[trace.Sandbox] != podID || set[trace.Container] != "c" {
		t.Errorf("attributes %v", set)
	}
	if a := started.Find("task.Start").Attributes(); len(a) != 3 || a[2].Value.AsInt64() != 101 {
		t.Errorf("attributes %v", a)
	}
}

// A call that fails says so of its phase, and nothing is asked of an agent that
// does not know what it is asked.
func TestTraceFailure(t *testing.T) {
	r := newRig(t)
	r.pods.failing("prepare", errors.New("no room"))
	ctx, recording := tracetest.Start(r.ctx, t)
	if _, err := r.Create(ctx, "c", createOpts("")); err == nil {
		t.Fatal("created")
	}
	if s := recording.Find("task.Create").Status(); s.Description == "" {
		t.Errorf("status %+v", s)
	}
}
