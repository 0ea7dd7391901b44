package tasks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/task"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

var (
	fpActivated = failpoint.New("tasks/create/activated")
	fpPrepared  = failpoint.New("tasks/create/prepared")
	fpCreated   = failpoint.New("tasks/create/created")
	fpTold      = failpoint.New("tasks/create/told")
)

const (
	// cleanupTimeout bounds what is undone after a failed Create.
	cleanupTimeout = 30 * time.Second

	// callTimeout bounds a call that is finished although its caller has given
	// up; it is as long as kubelet's calls to the CRI plugin take at most
	// (runtimeRequestTimeout).
	callTimeout = 2 * time.Minute
)

// steady is for a call that must not be torn when its caller gives up: the
// agent does it anyway, and we would not know.
func steady(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	}
	return context.WithDeadline(context.WithoutCancel(ctx), deadline)
}

// Create implements runtime.PlatformRuntime.
func (r *Runtime) Create(ctx context.Context, id string, opts runtime.CreateOpts) (runtime.Task, error) {
	live, err := r.find(opts.SandboxID)
	if err != nil {
		return nil, fmt.Errorf("create task %s: %w", id, err)
	}
	if live == nil {
		return r.cfg.Stock.Create(ctx, id, opts)
	}
	t, err := r.create(ctx, id, live, opts)
	if err != nil {
		return nil, fmt.Errorf("create task %s: %w", id, err)
	}
	return t, nil
}

func (r *Runtime) create(ctx context.Context, id string, live *sandbox.Live, opts runtime.CreateOpts) (_ *Task, err error) {
	ctx, span := begin(ctx, "task.Create", opts.SandboxID, id)
	defer span.End(&err)
	if err := identifiers.Validate(id); err != nil {
		return nil, err
	}
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	if !live.Running() {
		return nil, fmt.Errorf("sandbox %s does not run: %w", opts.SandboxID, errdefs.ErrFailedPrecondition)
	}
	spec, err := decode(opts)
	if err != nil {
		return nil, err
	}
	t := r.newTask(key{namespace, id}, live, saved{
		Sandbox: opts.SandboxID, Sandboxer: live.Sandboxer(),
		Phase: creating,
		Stdin: opts.IO.Stdin, Stdout: opts.IO.Stdout, Stderr: opts.IO.Stderr, Terminal: opts.IO.Terminal,
		Retain: retain(spec),
	})
	t.hold()
	end, err := r.claim(ctx, t)
	if err != nil {
		return nil, err
	}
	defer end()
	ctx, cancel := steady(ctx)
	defer cancel()
	if err := t.create(ctx, spec, opts); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		return nil, errors.Join(err, t.abandon(ctx))
	}
	t.let()
	return t, nil
}

// claim takes a task in, with its turn. What a failed Create left under its id
// is removed first.
func (r *Runtime) claim(ctx context.Context, t *Task) (end func(), err error) {
	if end, err = t.begin(ctx); err != nil {
		return nil, err
	}
	for {
		former := r.add(t)
		if former == nil {
			return end, nil
		}
		if err := former.clear(ctx); err != nil {
			end()
			return nil, err
		}
	}
}

// clear removes a task that is only half made. Any other stays.
func (t *Task) clear(ctx context.Context) error {
	end, err := t.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	switch {
	case t.runtime.lacks(t):
		return nil
	case t.phase() != creating:
		return fmt.Errorf("task %s: %w", t.key.id, errdefs.ErrAlreadyExists)
	}
	if err := t.discard(ctx); err != nil {
		return fmt.Errorf("remove what is left of a failed attempt: %w", err)
	}
	return nil
}

// decode checks what the agent needs in any case.
func decode(opts runtime.CreateOpts) (*specs.Spec, error) {
	if opts.Spec == nil {
		return nil, fmt.Errorf("the container has no spec: %w", errdefs.ErrInvalidArgument)
	}
	spec := &specs.Spec{}
	if err := json.Unmarshal(opts.Spec.GetValue(), spec); err != nil {
		return nil, fmt.Errorf("decode spec of type %s: %w: %w", opts.Spec.GetTypeUrl(), err, errdefs.ErrInvalidArgument)
	}
	if spec.Process == nil || len(spec.Process.Args) == 0 {
		return nil, fmt.Errorf("the spec has no process to start: %w", errdefs.ErrInvalidArgument)
	}
	if len(opts.Rootfs) == 0 && (spec.Root == nil || spec.Root.Path == "") {
		return nil, fmt.Errorf("the container has no rootfs: neither mounts of a snapshot nor root.path in its spec: %w", errdefs.ErrInvalidArgument)
	}
	return spec, nil
}

// retain has the agent keep output of which the daemon writes the log.
func retain(spec *specs.Spec) bool {
	if spec.Annotations["io.kubernetes.cri.container-type"] != "container" {
		return false
	}
	spec.Annotations[task.RetainOutput] = "true"
	return true
}

func (t *Task) create(ctx context.Context, spec *specs.Spec, opts runtime.CreateOpts) error {
	if err := t.save(func(*saved) {}); err != nil {
		return err
	}
	rootfs, err := t.runtime.activate(ctx, t.key.id, opts.Rootfs)
	if err != nil {
		return err
	}
	fpActivated.Hit()
	container := &sandbox.Container{ID: t.key.id, Spec: spec, Rootfs: rootfs, IO: sandbox.IO(opts.IO)}
	if o := opts.TaskOptions; o != nil && o.GetTypeUrl() != "" {
		container.Options = typeurl.MarshalProto(o)
	}
	bundle, err := t.sandbox.Prepare(ctx, container)
	if err != nil {
		return err
	}
	fpPrepared.Hit()
	if opts.RestoreFromPath {
		if err := unpack(ctx, opts.Checkpoint, bundle.Rootfs); err != nil {
			return err
		}
	}
	if err := t.open(ctx); err != nil {
		return err
	}
	pid, err := t.make(ctx, bundle, opts)
	if err != nil {
		return err
	}
	fpCreated.Hit()
	t.attach()
	t.mu.Lock()
	t.saved.Phase, t.saved.Pid = living, pid
	t.mu.Unlock()
	t.holdStdin()
	// Told before it is recorded: what the next daemon finds half made it
	// removes, and tells of its end.
	t.publish(&apievents.TaskCreate{
		ContainerID: t.key.id, Bundle: bundle.Path, Rootfs: apiMounts(opts.Rootfs), Pid: pid, Checkpoint: opts.Checkpoint,
		IO: &apievents.TaskIO{Stdin: opts.IO.Stdin, Stdout: opts.IO.Stdout, Stderr: opts.IO.Stderr, Terminal: opts.IO.Terminal},
	})
	fpTold.Hit()
	if err := t.save(func(*saved) {}); err != nil {
		return err
	}
	if opts.RestoreFromPath {
		return t.Start(ctx) // CRI takes it for started
	}
	return nil
}

// make has the agent make the container.
func (t *Task) make(ctx context.Context, bundle sandbox.Bundle, opts runtime.CreateOpts) (pid uint32, err error) {
	agent, err := t.agent(ctx)
	if err != nil {
		return 0, err
	}
	resp, err := agent.Create(ctx, &taskapi.CreateTaskRequest{
		ID: t.key.id, Bundle: bundle.Path,
		Stdin: opts.IO.Stdin, Stdout: opts.IO.Stdout, Stderr: opts.IO.Stderr, Terminal: opts.IO.Terminal,
		Checkpoint: opts.Checkpoint, Options: bundle.Options,
	})
	if err != nil {
		return 0, native(err)
	}
	t.process.mu.Lock()
	defer t.process.mu.Unlock()
	t.process.made(resp.Pid)
	return resp.Pid, nil
}

func apiMounts(mounts []mount.Mount) []*types.Mount {
	list := make([]*types.Mount, 0, len(mounts))
	for _, m := range mounts {
		list = append(list, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	return list
}

// abandon removes a task whose creation failed.
func (t *Task) abandon(ctx context.Context) error {
	if t.phase() == creating {
		return t.discard(ctx)
	}
	t.let() // it was told of, and so its end is
	return t.withdraw(ctx)
}

// discard removes a task whose creation did not end well, wherever it got. The
// caller has its turn. Nobody is told: it never was.
func (t *Task) discard(ctx context.Context) error {
	if err := t.kill(ctx); err != nil && !t.over() {
		return fmt.Errorf("end container %s: %w", t.key.id, err)
	}
	if err := t.release(ctx); err != nil {
		return err
	}
	return t.forget()
}

// withdraw is discard of a task that may have been told of: that is so if its
// agent had made it.
func (t *Task) withdraw(ctx context.Context) error {
	err := t.kill(ctx)
	switch {
	case err == nil:
	case !t.over():
		return fmt.Errorf("end container %s: %w", t.key.id, err)
	default:
		t.finish(t.killed())
	}
	if err := t.settle(ctx); err != nil {
		return err
	}
	if pid, _ := t.PID(ctx); pid == 0 {
		return t.discard(ctx)
	}
	_, err = t.dispose(ctx)
	return err
}

// kill ends the container, if there is one, and removes it from the agent.
func (t *Task) kill(ctx context.Context) error {
	return t.call(ctx, func(ctx context.Context, agent *task.Client) error {
		_, err := agent.Kill(ctx, &taskapi.KillRequest{ID: t.key.id, Signal: 9, All: true})
		if err == nil {
			_, err = agent.Wait(ctx, &taskapi.WaitRequest{ID: t.key.id})
		}
		// A process that was not made yet can be removed and not killed.
		if err = native(err); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
			return err
		}
		resp, err := agent.Delete(ctx, &taskapi.DeleteRequest{ID: t.key.id})
		if err == nil && resp.ExitedAt != nil {
			t.ending(resp.Pid, &api.Exit{Status: resp.ExitStatus, ExitedAt: resp.ExitedAt})
		}
		return ignore(native(err), errdefs.IsNotFound)
	})
}
