package tasks

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/protobuf/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/task"
)

var _ runtime.Task = (*Task)(nil)

// Task is one container's task.
type Task struct {
	*process // the first one
	key      key
	pod      string // id of the sandbox
	runtime  *Runtime
	sandbox  *sandbox.Live
	turn     chan struct{} // holds one element while a call creates or deletes it

	mu     sync.Mutex
	saved  saved
	execs  map[string]*process // nil until there is one
	client *task.Client        // the agent that has the task, as far as known
	oomed  time.Time           // when its guest last said that it had been, if that is one
	veil   *veil               // of a task that was restored, until it is waited for

	writing sync.Mutex // serializes the record's writers
}

func (r *Runtime) newTask(k key, live *sandbox.Live, s saved) *Task {
	t := &Task{key: k, pod: s.Sandbox, runtime: r, sandbox: live, saved: s, turn: make(chan struct{}, 1)}
	t.process = newProcess(t, "", runtime.IO{Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr, Terminal: s.Terminal})
	t.process.pid, t.process.closed = s.Pid, s.StdinClosed
	return t
}

// begin waits for the turn.
func (t *Task) begin(ctx context.Context) (end func(), err error) {
	select {
	case t.turn <- struct{}{}:
		return func() { <-t.turn }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for another call on %s: %w", t, ctx.Err())
	}
}

func (t *Task) phase() phase {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.saved.Phase
}

// over says that the sandbox has ended, and everything in it.
func (t *Task) over() bool {
	select {
	case <-t.sandbox.Done():
		return true
	default:
		return false
	}
}

// killed is the exit of what ended with the sandbox.
func (t *Task) killed() exit { return exit{Status: killedStatus, At: t.sandbox.Exit().At} }

// get returns one of the task's processes, or nil.
func (t *Task) get(exec string) *process {
	if exec == "" {
		return t.process
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.execs[exec]
}

// processes are the execs, then the first one: its exit is the last to be told.
func (t *Task) processes() []*process {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*process, 0, len(t.execs)+1)
	for _, p := range t.execs {
		all = append(all, p)
	}
	return append(all, t.process)
}

// addExec makes an exec known, unless its id is taken.
func (t *Task) addExec(p *process) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.execs[p.exec] != nil {
		return false
	}
	if t.execs == nil {
		t.execs = map[string]*process{}
	}
	t.execs[p.exec] = p
	return true
}

func (t *Task) hasExec(p *process) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.execs[p.exec] == p
}

func (t *Task) dropExec(p *process) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.execs[p.exec] == p {
		delete(t.execs, p.exec)
		// The next to write the record does without it.
		t.saved.Told = slices.DeleteFunc(slices.Clone(t.saved.Told), func(id string) bool { return id == p.exec })
		t.saved.Execs = maps.Clone(t.saved.Execs)
		delete(t.saved.Execs, p.exec)
	}
}

// repeated says that a daemon before this one told of the exec's exit.
func (t *Task) repeated(p *process) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return p.exec != "" && slices.Contains(t.saved.Told, p.exec)
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
	return t.freeze(ctx, runtime.PausedStatus, &apievents.TaskPaused{ContainerID: t.key.id}, func(ctx context.Context, agent *task.Client) error {
		_, err := agent.Pause(ctx, &taskapi.PauseRequest{ID: t.key.id})
		return err
	})
}

// Resume implements runtime.Task.
func (t *Task) Resume(ctx context.Context) error {
	return t.freeze(ctx, runtime.RunningStatus, &apievents.TaskResumed{ContainerID: t.key.id}, func(ctx context.Context, agent *task.Client) error {
		_, err := agent.Resume(ctx, &taskapi.ResumeRequest{ID: t.key.id})
		return err
	})
}

func (t *Task) freeze(ctx context.Context, to runtime.Status, event any, call func(context.Context, *task.Client) error) error {
	t.hold()
	defer t.let()
	if err := t.call(ctx, call); err != nil {
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
func (t *Task) Exec(ctx context.Context, id string, opts runtime.ExecOpts) (_ runtime.ExecProcess, err error) {
	ctx, span := begin(ctx, "task.Exec", t.pod, t.key.id)
	defer span.End(&err)
	if err := identifiers.Validate(id); err != nil {
		return nil, fmt.Errorf("exec %q in %s: %w", id, t, err)
	}
	if t.isDone() {
		return nil, fmt.Errorf("exec %s in %s: it has exited: %w", id, t, errdefs.ErrFailedPrecondition)
	}
	p := newProcess(t, id, opts.IO)
	p.fresh = true
	p.hold()
	if !t.addExec(p) {
		return nil, fmt.Errorf("%s: %w", p, errdefs.ErrAlreadyExists)
	}
	defer p.let()
	ctx, cancel := steady(ctx)
	defer cancel()
	err = t.noteExec(id, opts.IO)
	if err == nil {
		err = t.addToAgent(ctx, id, opts)
	}
	if err != nil {
		t.dropExec(p)
		p.bury()
		return nil, err
	}
	t.publish(&apievents.TaskExecAdded{ContainerID: t.key.id, ExecID: id})
	return p, nil
}

// addToAgent makes an exec known to the agent.
func (t *Task) addToAgent(ctx context.Context, id string, opts runtime.ExecOpts) error {
	again := false
	return t.call(ctx, func(ctx context.Context, agent *task.Client) error {
		_, err := agent.Exec(ctx, &taskapi.ExecProcessRequest{
			ID: t.key.id, ExecID: id, Spec: opts.Spec,
			Stdin: opts.IO.Stdin, Stdout: opts.IO.Stdout, Stderr: opts.IO.Stderr, Terminal: opts.IO.Terminal,
		})
		if again { // the agent that died may have done it
			err = ignore(native(err), errdefs.IsAlreadyExists)
		}
		again = true
		return err
	})
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
	err := t.call(ctx, func(ctx context.Context, agent *task.Client) (err error) {
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
	if t.streams() {
		return fmt.Errorf("checkpoint %s: it is in a guest, which has no files of the host's to write it to: %w", t, errdefs.ErrNotImplemented)
	}
	agent, err := t.agent(ctx)
	if err != nil {
		return fmt.Errorf("checkpoint %s: %w", t, err)
	}
	t.hold()
	defer t.let()
	_, err = agent.Checkpoint(ctx, &taskapi.CheckpointTaskRequest{ID: t.key.id, Path: path, Options: options})
	if err != nil {
		return native(err)
	}
	t.publish(&apievents.TaskCheckpointed{ContainerID: t.key.id})
	return nil
}

// Update implements runtime.Task.
func (t *Task) Update(ctx context.Context, resources *types.Any, annotations map[string]string) error {
	return t.call(ctx, func(ctx context.Context, agent *task.Client) error {
		_, err := agent.Update(ctx, &taskapi.UpdateTaskRequest{ID: t.key.id, Resources: resources, Annotations: annotations})
		return err
	})
}

// Stats implements runtime.Task.
func (t *Task) Stats(ctx context.Context) (*anypb.Any, error) {
	if t.runtime.muted(t.pod) {
		return nil, fmt.Errorf("stats of %s: %w", t, errStalled)
	}
	ctx, cancel := t.patient(ctx, statsTime)
	defer cancel()
	var resp *taskapi.StatsResponse
	err := t.call(ctx, func(ctx context.Context, agent *task.Client) (err error) {
		resp, err = agent.Stats(ctx, &taskapi.StatsRequest{ID: t.key.id})
		return err
	})
	if t.streams() {
		t.runtime.setMute(t.pod, !errors.Is(err, errStalled))
	}
	if err != nil {
		return nil, err
	}
	return resp.Stats, nil
}
