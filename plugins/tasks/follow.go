package tasks

import (
	"context"
	"errors"
	"fmt"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/task"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

const (
	// unknownStatus is the status of a process that nobody saw exit
	// (containerd's client.UnknownExitStatus).
	unknownStatus = 255

	// killedStatus is that of a process whose sandbox ended: 128 + SIGKILL.
	killedStatus = 137

	// retryDelay is between two attempts to reach an agent that is gone while
	// its sandbox is not.
	retryDelay = time.Second
)

// agentID tells connections apart.
type agentID = *task.Client

// follower reads one agent's events.
type follower struct {
	ready chan struct{} // closed when the tasks' states are the agent's, or err is set
	err   error
}

// follow makes sure that an agent's events are read, and returns when the
// states of its tasks are up to date.
func (r *Runtime) follow(ctx context.Context, client *task.Client) error {
	r.mu.Lock()
	f, found := r.agents[client]
	if !found {
		f = &follower{ready: make(chan struct{})}
		r.agents[client] = f
	}
	r.mu.Unlock()
	if !found {
		go r.read(client, f)
	}
	select {
	case <-f.ready:
		return f.err
	case <-ctx.Done():
		return fmt.Errorf("wait for the agent's events: %w", ctx.Err())
	}
}

// read follows an agent until its connection ends.
func (r *Runtime) read(client *task.Client, f *follower) {
	stream, err := r.subscribe(client)
	f.err = err
	close(f.ready)
	for err == nil {
		var e *api.Event
		if e, err = stream.Recv(); err == nil {
			r.dispatch(e)
		}
	}
	r.mu.Lock()
	delete(r.agents, client)
	r.mu.Unlock()
	log.G(r.life).WithError(err).Info("lost an agent's events")
	r.replace(client)
}

// subscribe reads events first and the list of processes then, so that
// nothing falls in between.
func (r *Runtime) subscribe(client *task.Client) (api.Agent_EventsClient, error) {
	stream, err := client.Events(r.life, &api.EventsRequest{})
	if err == nil {
		_, err = stream.Recv() // the first says that the others follow
	}
	var list *api.ListResponse
	if err == nil {
		list, err = client.List(r.life, &api.ListRequest{})
	}
	if err != nil {
		return nil, fmt.Errorf("follow agent: %w", errors.Join(errgrpc.ToNative(err), errdefs.ErrUnavailable))
	}
	r.reconcile(client, list.Processes)
	return stream, nil
}

func (r *Runtime) dispatch(e *api.Event) {
	r.mu.Lock()
	t := r.tasks[key{e.Namespace, e.ContainerId}]
	r.mu.Unlock()
	if t == nil {
		return // a sandbox's own process, or one that was never ours
	}
	switch e := e.Event.(type) {
	case *api.Event_Exit:
		if p := t.get(e.Exit.ExecId); p != nil {
			t.ending(p, e.Exit.Pid, e.Exit.Exit)
		}
	case *api.Event_Oom:
		t.publish(&apievents.TaskOOM{ContainerID: t.key.id})
	}
}

// get returns one of the task's processes, or nil.
func (t *Task) get(exec string) *process {
	if exec == "" {
		return t.process
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.execs[exec]
}

// ending takes an agent's word for an exit.
func (t *Task) ending(p *process, pid uint32, e *api.Exit) {
	if e == nil {
		e = &api.Exit{Status: unknownStatus, ExitedAt: timestamppb.Now(), Unknown: "the agent does not say"}
	}
	if e.Unknown != "" {
		log.G(t.runtime.life).WithField("id", t.key.id).WithField("exec", p.exec).
			Warnf("exit status is unknown: %s", e.Unknown)
	}
	p.mu.Lock()
	if pid != 0 && p.pid == 0 {
		p.pid = pid
	}
	p.mu.Unlock()
	p.exited(exit{Status: e.Status, At: e.ExitedAt.AsTime()})
}

// reconcile makes the tasks of an agent what it says they are.
func (r *Runtime) reconcile(client *task.Client, list []*api.Process) {
	listed := map[key][]*api.Process{}
	for _, p := range list {
		k := key{p.Namespace, p.ContainerId}
		listed[k] = append(listed[k], p)
	}
	for _, t := range r.all() {
		if processes, found := listed[t.key]; found {
			t.reconcile(processes)
		} else if t.at() == client {
			t.vanished()
		}
	}
}

// at returns the agent that the task was last seen with.
func (t *Task) at() *task.Client {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.client
}

// move takes note of the agent that the task is with.
func (t *Task) move(client *task.Client) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.client = client
}

func (t *Task) reconcile(list []*api.Process) {
	for _, d := range list {
		p := t.get(d.ExecId)
		if p == nil {
			p = newProcess(t, d.ExecId, runtime.IO{Stdin: d.Stdin, Stdout: d.Stdout, Stderr: d.Stderr, Terminal: d.Terminal})
			t.mu.Lock()
			t.execs[d.ExecId] = p
			t.mu.Unlock()
		}
		p.mu.Lock()
		if p.status != runtime.StoppedStatus && !p.busy {
			p.pid, p.status = d.Pid, statuses[d.Status]
		}
		p.mu.Unlock()
		if d.Status == api.Status_STATUS_STOPPED {
			p.mu.Lock()
			p.status = unstopped(p)
			p.mu.Unlock()
			t.ending(p, d.Pid, d.Exit)
		}
	}
}

// unstopped lets exited do its work once for a process that just became known
// to have stopped.
func unstopped(p *process) runtime.Status {
	select {
	case <-p.done:
		return runtime.StoppedStatus
	default:
		return runtime.RunningStatus
	}
}

var statuses = map[api.Status]runtime.Status{
	api.Status_STATUS_UNSPECIFIED: runtime.CreatedStatus,
	api.Status_STATUS_CREATED:     runtime.CreatedStatus,
	api.Status_STATUS_RUNNING:     runtime.RunningStatus,
	api.Status_STATUS_PAUSED:      runtime.PausedStatus,
	api.Status_STATUS_STOPPED:     runtime.RunningStatus, // until its exit is taken note of
}

// vanished ends a task that its agent does not know. One that is being created
// is not there yet.
func (t *Task) vanished() {
	t.process.mu.Lock()
	busy := t.process.busy
	t.process.mu.Unlock()
	if busy {
		return
	}
	t.finish(exit{Status: unknownStatus, At: time.Now()})
}

// finish ends all processes of the task.
func (t *Task) finish(e exit) {
	t.mu.Lock()
	all := make([]*process, 0, len(t.execs)+1)
	for _, p := range t.execs {
		all = append(all, p)
	}
	t.mu.Unlock()
	for _, p := range append(all, t.process) {
		p.exited(e)
	}
}

func (r *Runtime) all() []*Task {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]*Task, 0, len(r.tasks))
	for _, t := range r.tasks {
		list = append(list, t)
	}
	return list
}

// replace finds the next agent for the tasks of one that is gone, with one
// goroutine for each of its sandboxes, until it is found or the sandbox ended.
func (r *Runtime) replace(client *task.Client) {
	sandboxes := map[string]*sandbox.Live{}
	for _, t := range r.all() {
		if t.at() == client {
			sandboxes[t.saved.Sandbox] = t.sandbox
		}
	}
	for id, live := range sandboxes {
		go r.reach(id, live)
	}
}

// reach follows the agent that a sandbox has now.
func (r *Runtime) reach(id string, live *sandbox.Live) {
	for {
		client, err := live.Agent(r.life)
		if err == nil {
			for _, t := range r.all() {
				if t.saved.Sandbox == id {
					t.move(client)
				}
			}
			err = r.follow(r.life, client)
		}
		if err == nil {
			return
		}
		log.G(r.life).WithError(err).WithField("sandbox", id).Warn("agent is not reached")
		select {
		case <-live.Done():
			r.sandboxEnded(id, live.Exit().At)
			return
		case <-time.After(retryDelay):
		}
	}
}

// sandboxEnded ends all tasks of a sandbox that took its agent with it.
func (r *Runtime) sandboxEnded(id string, at time.Time) {
	for _, t := range r.all() {
		if t.saved.Sandbox == id {
			t.finish(exit{Status: killedStatus, At: at})
		}
	}
}

func timestamp(t time.Time) *timestamppb.Timestamp { return timestamppb.New(t) }
