package tasks

import (
	"testing"

	"github.com/containerd/containerd/v2/core/runtime"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// A process may have ended before the answer to Start is here.
func TestExitDoesNotOvertakeStart(t *testing.T) {
	r := newRig(t)
	c := r.create("c")
	r.agent.on("started", func() { r.agent.exit("c", "", 1) })
	r.must(c.Start(r.ctx))
	r.wait(c)
	r.agent.on("started", nil)
	d := r.run("d")
	r.agent.on("started", func() { r.agent.exit("d", "e", 2) })
	r.wait(r.exec(d, "e"))
	r.log.want("create c", "start c", "exit c 1", "create d", "start d", "exec-added d/e", "exec-started d/e", "exit d/e 2")
}

func TestExitIsLearnedFromNextAgent(t *testing.T) {
	r := newRig(t)
	c := r.run("c")
	r.exec(c, "e")
	r.agent.hangUp(true)
	r.agent.exit("c", "e", 2)
	r.agent.exit("c", "", 3)
	r.agent.rise()
	if e := r.wait(c); e.Status != 3 {
		t.Errorf("exit %+v", e)
	}
	r.log.want("create c", "start c", "exec-added c/e", "exec-started c/e", "exit c/e 2", "exit c 3")
}

func TestTaskThatNextAgentDoesNotKnow(t *testing.T) {
	r := newRig(t)
	c := r.run("c")
	p := r.exec(c, "e")
	r.agent.hangUp(true)
	r.agent.lose("c", "")
	r.agent.lose("c", "e")
	r.agent.rise()
	if e := r.wait(p); e.Status != unknownStatus {
		t.Errorf("exit of the exec %+v", e)
	}
	if e := r.wait(c); e.Status != unknownStatus {
		t.Errorf("exit %+v", e)
	}
	if _, err := r.Delete(r.ctx, "c"); err != nil {
		t.Error(err)
	}
	r.clean("c")
	r.log.want("create c", "start c", "exec-added c/e", "exec-started c/e", "exit c/e 255", "exit c 255", "delete c 255")
}

// What the next agent could not restore has not ended.
func TestTaskThatNextAgentDoesNotRestore(t *testing.T) {
	r := newRig(t)
	c, other := r.run("c"), r.run("other")
	p := r.exec(c, "e")
	status := func(s api.Status) {
		r.agent.mu.Lock()
		defer r.agent.mu.Unlock()
		r.agent.procs[procKey{key{space, "c"}, ""}].Status = s
	}
	r.agent.hangUp(true)
	r.agent.lose("c", "e")
	status(api.Status_STATUS_UNSPECIFIED)
	r.agent.rise()
	r.agent.exit("other", "", 3)
	r.wait(other) // so what the agent has is known by now
	for name, q := range map[string]runtime.Process{"task": c, "exec": p} {
		if s := r.state(q); s.Status != runtime.RunningStatus {
			t.Errorf("the %s is %+v", name, s)
		}
	}
	status(api.Status_STATUS_RUNNING)
}

func TestExecThatNextAgentDoesNotKnow(t *testing.T) {
	r := newRig(t)
	c := r.run("c")
	p := r.exec(c, "e")
	r.agent.hangUp(true)
	r.agent.lose("c", "e")
	r.agent.rise()
	if e := r.wait(p); e.Status != unknownStatus {
		t.Errorf("exit %+v", e)
	}
	if s := r.state(c); s.Status != runtime.RunningStatus {
		t.Errorf("the task: %+v", s)
	}
}

func TestSandboxDies(t *testing.T) {
	r := newRig(t)
	c := r.run("c")
	r.exec(c, "e")
	r.pods.end(1)
	if e := r.wait(c); e.Status != killedStatus || !e.Timestamp.Equal(exitTime) {
		t.Errorf("exit %+v", e)
	}
	if e, err := r.Delete(r.ctx, "c"); err != nil || e.Status != killedStatus {
		t.Errorf("delete without an agent: %+v, %v", e, err)
	}
	r.clean("c")
	r.log.want("create c", "start c", "exec-added c/e", "exec-started c/e", "exit c/e 137", "exit c 137", "delete c 137")
}
