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
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/task"
)

var (
	fpActivated = failpoint.New("tasks/create/activated")
	fpPrepared  = failpoint.New("tasks/create/prepared")
	fpCreated   = failpoint.New("tasks/create/created")
	fpRemoved   = failpoint.New("tasks/delete/removed")
	fpReleased  = failpoint.New("tasks/delete/released")
)

// cleanupTimeout bounds what is undone after a failed Create.
const cleanupTimeout = 30 * time.Second

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

func (r *Runtime) create(ctx context.Context, id string, live *sandbox.Live, opts runtime.CreateOpts) (*Task, error) {
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
		Sandbox: opts.SandboxID,
		Phase:   creating,
		Stdin:   opts.IO.Stdin, Stdout: opts.IO.Stdout, Stderr: opts.IO.Stderr, Terminal: opts.IO.Terminal,
	})
	t.saved.Retain = retain(spec)
	t.hold()
	if err := r.add(t); err != nil {
		return nil, err
	}
	if err := t.create(ctx, spec, opts); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		return nil, errors.Join(err, t.discard(ctx))
	}
	t.let()
	return t, nil
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
	agent, err := t.agent(ctx)
	if err != nil {
		return err
	}
	resp, err := agent.Create(ctx, &taskapi.CreateTaskRequest{
		ID: t.key.id, Bundle: bundle.Path,
		Stdin: opts.IO.Stdin, Stdout: opts.IO.Stdout, Stderr: opts.IO.Stderr, Terminal: opts.IO.Terminal,
		Checkpoint: opts.Checkpoint, Options: bundle.Options,
	})
	if err != nil {
		return errgrpc.ToNative(err)
	}
	fpCreated.Hit()
	t.process.mu.Lock()
	t.process.pid = resp.Pid
	t.process.mu.Unlock()
	if err := t.save(func(s *saved) { s.Phase, s.Pid, s.Bundle = living, resp.Pid, bundle.Path }); err != nil {
		return err
	}
	t.publish(&apievents.TaskCreate{
		ContainerID: t.key.id, Bundle: bundle.Path, Rootfs: apiMounts(opts.Rootfs), Pid: resp.Pid, Checkpoint: opts.Checkpoint,
		IO: &apievents.TaskIO{Stdin: opts.IO.Stdin, Stdout: opts.IO.Stdout, Stderr: opts.IO.Stderr, Terminal: opts.IO.Terminal},
	})
	return nil
}

func apiMounts(mounts []mount.Mount) []*types.Mount {
	list := make([]*types.Mount, 0, len(mounts))
	for _, m := range mounts {
		list = append(list, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	return list
}

// Delete implements runtime.PlatformRuntime.
func (r *Runtime) Delete(ctx context.Context, id string) (*runtime.Exit, error) {
	t, err := r.own(ctx, id)
	if err != nil {
		return nil, err
	}
	if t == nil {
		return r.cfg.Stock.Delete(ctx, id)
	}
	if err := t.remove(ctx, t.process); err != nil {
		return nil, fmt.Errorf("delete task %s: %w", id, err)
	}
	fpRemoved.Hit()
	if err := t.release(ctx); err != nil {
		return nil, fmt.Errorf("delete task %s: %w", id, err)
	}
	ended := t.ended()
	t.publish(&apievents.TaskDelete{
		ContainerID: id, ID: id, Pid: ended.Pid, ExitStatus: ended.Status, ExitedAt: timestamp(ended.Timestamp),
	})
	return ended, nil
}

// remove deletes a process from its agent. A process that is known to have
// ended needs no agent: it may be dead.
func (t *Task) remove(ctx context.Context, p *process) error {
	err := t.call(ctx, func(agent *task.Client) error {
		resp, err := agent.Delete(ctx, &taskapi.DeleteRequest{ID: t.key.id, ExecID: p.exec})
		if err == nil && resp.ExitedAt != nil {
			p.exited(exit{Status: resp.ExitStatus, At: resp.ExitedAt.AsTime()})
		}
		return err
	})
	err = ignore(err, errdefs.IsNotFound)
	select {
	case <-p.done:
		return ignore(err, func(err error) bool { return errdefs.IsUnavailable(err) || t.over() })
	default:
		return err
	}
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

// release undoes the host's side of a task that its agent has no more.
func (t *Task) release(ctx context.Context) error {
	if err := t.save(func(s *saved) { s.Phase = deleting }); err != nil {
		return err
	}
	if err := t.sandbox.Release(ctx, t.key.id); err != nil {
		return err
	}
	fpReleased.Hit()
	if err := t.runtime.deactivate(ctx, t.key.id); err != nil {
		return err
	}
	if err := t.erase(); err != nil {
		return err
	}
	t.runtime.forget(t)
	return nil
}

// discard removes a task whose creation did not end well, wherever it got.
func (t *Task) discard(ctx context.Context) error {
	if agent, err := t.sandbox.Agent(ctx); err == nil {
		_, kerr := agent.Kill(ctx, &taskapi.KillRequest{ID: t.key.id, Signal: 9, All: true})
		if err := ignore(errgrpc.ToNative(kerr), gone); err == nil && kerr == nil {
			_, err = agent.Wait(ctx, &taskapi.WaitRequest{ID: t.key.id})
			if err := ignore(errgrpc.ToNative(err), gone); err != nil {
				return fmt.Errorf("end container %s: %w", t.key.id, err)
			}
		}
		_, err = agent.Delete(ctx, &taskapi.DeleteRequest{ID: t.key.id})
		if err := ignore(errgrpc.ToNative(err), gone); err != nil {
			return fmt.Errorf("delete container %s: %w", t.key.id, err)
		}
	} else if !t.over() {
		return fmt.Errorf("discard task %s: %w", t.key.id, err)
	}
	return t.release(ctx)
}
