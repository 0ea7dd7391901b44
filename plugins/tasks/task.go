package tasks

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/protobuf/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/task"
)

var _ runtime.Task = (*Task)(nil)

// Task is one container's task.
type Task struct {
	*process // the first one
	key      key
	runtime  *Runtime
	sandbox  *sandbox.Live

	mu     sync.Mutex
	saved  saved
	execs  map[string]*process
	client *task.Client // the agent that has the task, as far as known

	writing sync.Mutex // serializes the record's writers
	erased  bool       // guarded by writing: the record is gone
}

func (r *Runtime) newTask(k key, live *sandbox.Live, s saved) *Task {
	t := &Task{key: k, runtime: r, sandbox: live, saved: s, execs: map[string]*process{}}
	t.process = newProcess(t, "", runtime.IO{Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr, Terminal: s.Terminal})
	t.process.pid = s.Pid
	return t
}

// agentTries is how many agents may die while they are asked for their events.
const agentTries = 3

// agent returns the agent that has the task. Its events are followed.
func (t *Task) agent(ctx context.Context) (client *task.Client, err error) {
	for range agentTries {
		if client, err = t.sandbox.Agent(ctx); err != nil {
			return nil, err
		}
		t.move(client)
		if err = t.runtime.follow(ctx, client); err == nil {
			return client, nil
		}
		select {
		case <-client.Done(): // the sandbox has another one
		case <-time.After(retryDelay):
			return nil, err
		case <-ctx.Done():
			return nil, err
		}
	}
	return nil, err
}

// call calls the task's agent, and once more if that was dying: its sandbox
// has another one then. f must be one that may come twice.
func (t *Task) call(ctx context.Context, f func(*task.Client) error) error {
	agent, err := t.agent(ctx)
	if err != nil {
		return err
	}
	err = f(agent)
	if !errors.Is(err, ttrpc.ErrClosed) {
		return errgrpc.ToNative(err)
	}
	select {
	case <-agent.Done():
	case <-ctx.Done():
		return ctx.Err()
	}
	if agent, err = t.agent(ctx); err != nil {
		return err
	}
	return errgrpc.ToNative(f(agent))
}

// publish sends an event in the task's namespace.
func (t *Task) publish(event any) {
	ctx := namespaces.WithNamespace(t.runtime.life, t.key.namespace)
	if err := t.runtime.cfg.Publisher.Publish(ctx, runtime.GetTopic(event), event); err != nil {
		log.G(ctx).WithError(err).WithField("id", t.key.id).Error("publish event")
	}
}

// PID implements runtime.Task.
func (t *Task) PID(context.Context) (uint32, error) {
	t.process.mu.Lock()
	defer t.process.mu.Unlock()
	return t.process.pid, nil
}

// Namespace implements runtime.Task.
func (t *Task) Namespace() string { return t.key.namespace }

// Pause implements runtime.Task.
func (t *Task) Pause(ctx context.Context) error {
	return t.freeze(ctx, runtime.PausedStatus)
}

// Resume implements runtime.Task.
func (t *Task) Resume(ctx context.Context) error {
	return t.freeze(ctx, runtime.RunningStatus)
}

func (t *Task) freeze(ctx context.Context, to runtime.Status) error {
	t.hold()
	defer t.let()
	event := any(&apievents.TaskResumed{ContainerID: t.key.id})
	if to == runtime.PausedStatus {
		event = &apievents.TaskPaused{ContainerID: t.key.id}
	}
	err := t.call(ctx, func(agent *task.Client) (err error) {
		if to == runtime.PausedStatus {
			_, err = agent.Pause(ctx, &taskapi.PauseRequest{ID: t.key.id})
		} else {
			_, err = agent.Resume(ctx, &taskapi.ResumeRequest{ID: t.key.id})
		}
		return err
	})
	if err != nil {
		return err
	}
	t.process.mu.Lock()
	if t.process.status != runtime.StoppedStatus {
		t.process.status = to
	}
	t.process.mu.Unlock()
	t.publish(event)
	return nil
}

// Exec implements runtime.Task.
func (t *Task) Exec(ctx context.Context, id string, opts runtime.ExecOpts) (runtime.ExecProcess, error) {
	if err := identifiers.Validate(id); err != nil {
		return nil, fmt.Errorf("exec %q in %s: %w", id, t, err)
	}
	p := newProcess(t, id, opts.IO)
	p.hold()
	t.mu.Lock()
	_, taken := t.execs[id]
	if !taken {
		t.execs[id] = p
	}
	t.mu.Unlock()
	if taken {
		return nil, fmt.Errorf("%s: %w", p, errdefs.ErrAlreadyExists)
	}
	defer p.let()
	calls := 0
	err := t.call(ctx, func(agent *task.Client) error {
		calls++
		_, err := agent.Exec(ctx, &taskapi.ExecProcessRequest{
			ID: t.key.id, ExecID: id, Spec: opts.Spec,
			Stdin: opts.IO.Stdin, Stdout: opts.IO.Stdout, Stderr: opts.IO.Stderr, Terminal: opts.IO.Terminal,
		})
		return err
	})
	if calls > 1 { // the first may have done it
		err = ignore(err, errdefs.IsAlreadyExists)
	}
	if err != nil {
		t.mu.Lock()
		delete(t.execs, id)
		t.mu.Unlock()
		return nil, err
	}
	t.publish(&apievents.TaskExecAdded{ContainerID: t.key.id, ExecID: id})
	return p, nil
}

// Process implements runtime.Task.
func (t *Task) Process(_ context.Context, id string) (runtime.ExecProcess, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, found := t.execs[id]
	if !found {
		return nil, fmt.Errorf("process %s of %s: %w", id, t, errdefs.ErrNotFound)
	}
	return p, nil
}

// Pids implements runtime.Task.
func (t *Task) Pids(ctx context.Context) ([]runtime.ProcessInfo, error) {
	var resp *taskapi.PidsResponse
	err := t.call(ctx, func(agent *task.Client) (err error) {
		resp, err = agent.Pids(ctx, &taskapi.PidsRequest{ID: t.key.id})
		return err
	})
	if err != nil {
		return nil, err
	}
	list := make([]runtime.ProcessInfo, 0, len(resp.Processes))
	for _, p := range resp.Processes {
		info := runtime.ProcessInfo{Pid: p.Pid}
		if p.Info != nil {
			info.Info = p.Info
		}
		list = append(list, info)
	}
	return list, nil
}

// Checkpoint implements runtime.Task.
func (t *Task) Checkpoint(ctx context.Context, path string, options *types.Any) error {
	agent, err := t.agent(ctx)
	if err != nil {
		return fmt.Errorf("checkpoint %s: %w", t, err)
	}
	_, err = agent.Checkpoint(ctx, &taskapi.CheckpointTaskRequest{ID: t.key.id, Path: path, Options: options})
	if err != nil {
		return errgrpc.ToNative(err)
	}
	t.publish(&apievents.TaskCheckpointed{ContainerID: t.key.id})
	return nil
}

// Update implements runtime.Task.
func (t *Task) Update(ctx context.Context, resources *types.Any, annotations map[string]string) error {
	return t.call(ctx, func(agent *task.Client) error {
		_, err := agent.Update(ctx, &taskapi.UpdateTaskRequest{ID: t.key.id, Resources: resources, Annotations: annotations})
		return err
	})
}

// Stats implements runtime.Task.
func (t *Task) Stats(ctx context.Context) (*anypb.Any, error) {
	var resp *taskapi.StatsResponse
	err := t.call(ctx, func(agent *task.Client) (err error) {
		resp, err = agent.Stats(ctx, &taskapi.StatsRequest{ID: t.key.id})
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp.Stats, nil
}
