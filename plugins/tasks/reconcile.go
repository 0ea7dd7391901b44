package tasks

import (
	"slices"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/log"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/containerd-kuasar/containerd-kuasar/task"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

const (
	// unknownStatus is the status of a process that nobody saw exit
	// (containerd's client.UnknownExitStatus).
	unknownStatus = 255

	// killedStatus is that of a process whose sandbox ended: 128 + SIGKILL.
	killedStatus = 137
)

// dispatch takes note of one event.
func (r *Runtime) dispatch(f *follower, e *api.Event) {
	r.mu.Lock()
	t := r.tasks[key{e.Namespace, e.ContainerId}]
	r.mu.Unlock()
	if t == nil || !f.speaks(t) {
		return // a sandbox's own process, or one that was never ours
	}
	switch e := e.Event.(type) {
	case *api.Event_Exit:
		if p := t.get(e.Exit.ExecId); p != nil {
			p.ending(e.Exit.Pid, e.Exit.Exit)
		}
	case *api.Event_Oom:
		if t.phase() == living && t.rarely() {
			t.publish(&apievents.TaskOOM{ContainerID: t.key.id})
		}
	}
}

// oomTime is how often a guest may say that it ran out of memory: whoever listens
// to events keeps them all.
const oomTime = time.Second

// rarely says whether a guest has not told the same for a while.
func (t *Task) rarely() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.streams() {
		return true
	}
	if time.Since(t.oomed) < oomTime {
		return false
	}
	t.oomed = time.Now()
	return true
}

// ending takes an agent's word for an exit. Not every time can be recorded.
func (p *process) ending(pid uint32, e *api.Exit) {
	if e == nil {
		e = &api.Exit{Status: unknownStatus, ExitedAt: timestamppb.Now(), Unknown: "the agent does not say"}
	}
	at := time.Now()
	if e.ExitedAt.CheckValid() == nil {
		at = e.ExitedAt.AsTime()
	}
	// Once, and not much: it may be a guest that says so.
	if first := p.exited(pid, exit{Status: e.Status, At: at}); first && e.Unknown != "" {
		log.G(p.task.runtime.life).WithField("id", p.task.key.id).WithField("exec", p.exec).
			Warnf("exit status is unknown: %.200q", e.Unknown)
	}
}

// reconcile makes the tasks of an agent what it says they are.
func (r *Runtime) reconcile(client *task.Client, f *follower, list []*api.Process) {
	listed := map[key][]*api.Process{}
	for _, p := range list {
		k := key{p.Namespace, p.ContainerId}
		listed[k] = append(listed[k], p)
	}
	for _, t := range r.all() {
		if !f.speaks(t) {
			continue
		}
		if processes, found := listed[t.key]; found {
			t.reconcile(processes)
		} else if t.at() == client {
			t.vanished()
		}
	}
}

func (t *Task) reconcile(list []*api.Process) {
	// The first process's exit is the last to be told.
	slices.SortStableFunc(list, func(a, b *api.Process) int {
		switch {
		case a.ExecId == "":
			return 1
		case b.ExecId == "":
			return -1
		}
		return 0
	})
	known := map[string]bool{}
	for _, d := range list {
		known[d.ExecId] = true
		if d.ExecId == "" && d.Status == api.Status_STATUS_UNSPECIFIED {
			return // its agent could not restore it: its processes may run
		}
	}
	for _, p := range t.processes() {
		if p.exec != "" && !known[p.exec] {
			p.vanished()
		}
	}
	for _, d := range list {
		p := t.get(d.ExecId)
		if p == nil {
			io, known := t.execIO(d.ExecId, runtime.IO{Stdin: d.Stdin, Stdout: d.Stdout, Stderr: d.Stderr, Terminal: d.Terminal})
			if !known {
				continue
			}
			p = newProcess(t, d.ExecId, io)
			p.closed = true // or may be: nobody holds its stdin but the agent
			t.addExec(p)
		}
		p.reconcile(d)
	}
}

// reconcile makes a process what its agent says it is, unless a call is under
// way that will.
func (p *process) reconcile(d *api.Process) {
	if d.Status == api.Status_STATUS_STOPPED {
		p.ending(d.Pid, d.Exit)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	status, known := statuses[d.Status]
	if !known {
		status = runtime.RunningStatus // never taken for what may be removed
	}
	if p.status != runtime.StoppedStatus && p.busy == 0 {
		p.pid, p.status = d.Pid, status
	}
}

var statuses = map[api.Status]runtime.Status{
	api.Status_STATUS_CREATED: runtime.CreatedStatus,
	api.Status_STATUS_RUNNING: runtime.RunningStatus,
	api.Status_STATUS_PAUSED:  runtime.PausedStatus,
}

// vanished ends a task that its agent does not know.
func (t *Task) vanished() {
	for _, p := range t.processes() {
		p.vanished()
	}
}

// vanished ends a process that its agent does not know, unless a call is under
// way that makes it.
func (p *process) vanished() {
	p.mu.Lock()
	made := p.busy > 0 && p.pid == 0
	p.mu.Unlock()
	if !made {
		p.exited(0, exit{Status: unknownStatus, At: time.Now()})
	}
}

// finish ends all processes of the task.
func (t *Task) finish(e exit) {
	for _, p := range t.processes() {
		p.exited(0, e)
	}
}

func timestamp(t time.Time) *timestamppb.Timestamp { return timestamppb.New(t) }
