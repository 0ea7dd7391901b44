package tasks

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/task"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

const (
	// Between two attempts to reach an agent that is gone while its sandbox is
	// not, the delay doubles within these bounds.
	minRetry = 100 * time.Millisecond
	maxRetry = 10 * time.Second

	// agentTries is how many agents may die while they are asked for their
	// events.
	agentTries = 3
)

// follower reads one agent's events.
type follower struct {
	pod   string        // the one sandbox that the agent has, empty for one of many
	ready chan struct{} // closed when the tasks' states are the agent's, or err is set
	err   error
}

// speaks says whether the agent is believed what it says of a task: a guest's
// says nothing of another pod's.
func (f *follower) speaks(t *Task) bool { return f.pod == "" || f.pod == t.pod }

// native gives an agent's error its class.
func native(err error) error {
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, ttrpc.ErrClosed):
		return fmt.Errorf("the agent is gone: %w: %w", errdefs.ErrUnavailable, err)
	}
	return errgrpc.ToNative(err)
}

// call calls the task's agent, and once more if that was dying: its sandbox
// has another one then. f must be one that may come twice. If the sandbox has
// ended, what was asked for is errdefs.ErrNotFound.
func (t *Task) call(ctx context.Context, f func(context.Context, *task.Client) error) error {
	ctx, cancel := t.patient(ctx, guestTime)
	defer cancel()
	for again := false; ; again = true {
		agent, err := t.agent(ctx)
		if err == nil {
			err = stalled(ctx, native(f(ctx, agent)))
		}
		switch {
		case err == nil:
			return nil
		case errdefs.IsUnavailable(err) && t.over():
			return fmt.Errorf("%s ended with sandbox %s: %w", t, t.pod, errdefs.ErrNotFound)
		case again, agent == nil, !errors.Is(err, ttrpc.ErrClosed):
			return err
		}
		select {
		case <-agent.Done():
		case <-ctx.Done():
			return err
		}
	}
}

// agent returns the agent that has the task. Its events are followed.
func (t *Task) agent(ctx context.Context) (client *task.Client, err error) {
	ctx, cancel := t.patient(ctx, reachTime)
	defer cancel()
	for range agentTries {
		if client, err = t.sandbox.Agent(ctx); err != nil {
			return nil, stalled(ctx, err)
		}
		t.move(client)
		if err = t.runtime.follow(ctx, client, t.sandbox, t.pod); err == nil {
			return client, nil
		}
		wait := time.NewTimer(minRetry)
		select {
		case <-client.Done(): // the sandbox has another one
		case <-wait.C:
		case <-ctx.Done():
			return nil, stalled(ctx, err)
		}
		wait.Stop()
	}
	return nil, err
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

// follow makes sure that an agent's events are read, and returns when the
// states of its tasks are up to date.
func (r *Runtime) follow(ctx context.Context, client *task.Client, live *sandbox.Live, id string) error {
	r.mu.Lock()
	f, found := r.agents[client]
	if !found {
		f = &follower{ready: make(chan struct{})}
		if live.Streams() {
			f.pod = id
		}
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
	stream, err := r.subscribe(client, f)
	f.err = err
	close(f.ready)
	for err == nil {
		var e *api.Event
		if e, err = stream.Recv(); err == nil {
			r.guard(func() { r.dispatch(f, e) })
		}
	}
	r.mu.Lock()
	delete(r.agents, client)
	r.mu.Unlock()
	if r.life.Err() != nil {
		return
	}
	log.G(r.life).WithError(err).Info("lost an agent's events")
	r.replace(client)
}

// shared are the live agents whose events are read, but those of guests: they
// have nothing of other sandboxes.
func (r *Runtime) shared() []*task.Client {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Collect(maps.Keys(r.agents)), func(c *task.Client) bool {
		if r.agents[c].pod != "" {
			return true
		}
		select {
		case <-c.Done():
			return true
		default:
			return false
		}
	})
}

// guard keeps what an agent says from ending the daemon.
func (r *Runtime) guard(f func()) {
	defer func() {
		if p := recover(); p != nil {
			log.G(r.life).Errorf("panic over what an agent says: %v\n%s", p, debug.Stack())
		}
	}()
	f()
}

// subscribe reads events first and the list of processes then, so that
// nothing falls in between.
func (r *Runtime) subscribe(client *task.Client, f *follower) (api.Agent_EventsClient, error) {
	stream, err := client.Events(r.life, &api.EventsRequest{})
	if err == nil {
		_, err = stream.Recv() // the first says that the others follow
	}
	var list *api.ListResponse
	if err == nil {
		list, err = client.List(r.life, &api.ListRequest{})
	}
	if err != nil {
		return nil, fmt.Errorf("follow agent: %w", errors.Join(native(err), errdefs.ErrUnavailable))
	}
	r.guard(func() { r.reconcile(client, f, list.Processes) })
	return stream, nil
}

// replace finds the next agent for the tasks of one that is gone, with one
// goroutine for each of its sandboxes, until it is found or the sandbox ended.
func (r *Runtime) replace(client *task.Client) {
	sandboxes := map[string]*sandbox.Live{}
	for _, t := range r.all() {
		if t.at() == client {
			sandboxes[t.pod] = t.sandbox
		}
	}
	for id, live := range sandboxes {
		go r.reach(id, live)
	}
}

// meet reaches the agents of tasks, and returns the sandboxes whose agents do
// not answer in time. All tasks must be known to be with their agents before
// one of these says which it has.
func (r *Runtime) meet(ctx context.Context, tasks []*Task) (late map[string]*sandbox.Live) {
	ctx, cancel := context.WithTimeout(ctx, meetTimeout)
	defer cancel()
	pods := map[string][]*Task{}
	for _, t := range tasks {
		pods[t.pod] = append(pods[t.pod], t)
	}
	late = map[string]*sandbox.Live{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for id, tasks := range pods {
		all.Go(func() {
			live := tasks[0].sandbox
			client, err := dial(ctx, live)
			if err != nil && !tasks[0].over() {
				log.G(ctx).WithError(err).WithField("sandbox", id).Warn("agent does not answer")
				mu.Lock()
				defer mu.Unlock()
				late[id] = live
			}
			for _, t := range tasks {
				t.move(client)
			}
		})
	}
	all.Wait()
	return late
}

// dial reaches a sandbox's agent, which may be on its way.
func dial(ctx context.Context, live *sandbox.Live) (*task.Client, error) {
	for delay := minRetry; ; delay = min(2*delay, maxRetry) {
		client, err := live.Agent(ctx)
		if err == nil {
			return client, nil
		}
		wait := time.NewTimer(delay)
		select {
		case <-wait.C:
			continue
		case <-live.Done():
		case <-ctx.Done():
		}
		wait.Stop()
		return nil, err
	}
}

// attempt gives up when the sandbox ends.
func (r *Runtime) attempt(id string, live *sandbox.Live) error {
	ctx, cancel := context.WithCancel(r.life)
	defer cancel()
	go func() {
		select {
		case <-live.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	client, err := live.Agent(ctx)
	if err != nil {
		return err
	}
	tasks := r.of(id)
	for _, t := range tasks {
		t.move(client)
	}
	if err := r.follow(ctx, client, live, id); err != nil {
		return err
	}
	var errs []error
	for _, t := range tasks {
		t.restream(ctx)
		errs = append(errs, t.resume(ctx))
	}
	return errors.Join(errs...)
}

// of returns the tasks of a sandbox.
func (r *Runtime) of(id string) []*Task {
	var list []*Task
	for _, t := range r.all() {
		if t.pod == id {
			list = append(list, t)
		}
	}
	return list
}

// sandboxEnded ends all tasks of a sandbox that took its agent with it.
func (r *Runtime) sandboxEnded(id string) {
	for _, t := range r.of(id) {
		t.finish(t.killed())
		if err := t.resume(r.life); err != nil {
			log.G(r.life).WithError(err).WithField("id", t.key.id).Error("task is not removed")
		}
	}
}
