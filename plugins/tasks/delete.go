package tasks

import (
	"context"
	"fmt"

	apievents "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/task"
)

var (
	fpRemoved  = failpoint.New("tasks/delete/removed")
	fpReleased = failpoint.New("tasks/delete/released")
	fpErased   = failpoint.New("tasks/delete/erased")
)

// Delete implements runtime.PlatformRuntime. A second one of the same task,
// and the CRI plugin makes two at a time, is errdefs.ErrNotFound.
func (r *Runtime) Delete(ctx context.Context, id string) (*runtime.Exit, error) {
	t, l, err := r.own(ctx, id)
	switch {
	case err != nil:
		return nil, err
	case l != nil:
		return nil, l.cause
	case t == nil:
		return r.cfg.Stock.Delete(ctx, id)
	}
	exit, err := t.delete(ctx)
	if err != nil {
		return nil, fmt.Errorf("delete task %s: %w", id, err)
	}
	return exit, nil
}

func (t *Task) delete(ctx context.Context) (_ *runtime.Exit, err error) {
	ctx, span := begin(ctx, "task.Delete", t.pod, t.key.id)
	defer span.End(&err)
	end, err := t.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	t.uncover()
	if t.runtime.lacks(t) {
		return nil, fmt.Errorf("it was deleted meanwhile: %w", errdefs.ErrNotFound)
	}
	ctx, cancel := steady(ctx)
	defer cancel()
	if err := t.remove(ctx, t.process); err != nil {
		return nil, err
	}
	fpRemoved.Hit()
	return t.dispose(ctx)
}

// dispose removes a task that its agent has no more, and tells, before nobody
// knows any more that this is to be done.
func (t *Task) dispose(ctx context.Context) (*runtime.Exit, error) {
	if err := t.release(ctx); err != nil {
		return nil, err
	}
	exit := t.ended()
	t.publish(&apievents.TaskDelete{
		ContainerID: t.key.id, Pid: exit.Pid, ExitStatus: exit.Status, ExitedAt: timestamp(exit.Timestamp),
	})
	return exit, t.forget()
}

// remove deletes a process from its agent. A process of a sandbox that has
// ended needs no agent: it may be dead.
func (t *Task) remove(ctx context.Context, p *process) error {
	p.drain(ctx)
	err := t.call(ctx, func(ctx context.Context, agent *task.Client) error {
		resp, err := agent.Delete(ctx, &taskapi.DeleteRequest{ID: t.key.id, ExecID: p.exec})
		if err == nil && resp.ExitedAt != nil {
			p.exited(resp.Pid, exit{Status: resp.ExitStatus, At: resp.ExitedAt.AsTime()})
		}
		return err
	})
	switch {
	case err == nil:
	case !errdefs.IsNotFound(err):
		return err
	case t.over(): // and its agent with it
		p.exited(0, t.killed())
	}
	return p.settle(ctx)
}

// settle waits until a process that has exited is known to have: a call that is
// under way may have to tell something first.
func (p *process) settle(ctx context.Context) error {
	p.mu.Lock()
	waits := p.pending != nil || p.status == runtime.StoppedStatus
	p.mu.Unlock()
	if !waits {
		return nil
	}
	_, err := p.Wait(ctx)
	return err
}

// release undoes the host's side of a task that its agent has no more. The
// caller has its turn.
func (t *Task) release(ctx context.Context) error {
	if t.phase() == living {
		e := t.told()
		if err := t.save(func(s *saved) { s.Phase, s.Exit = deleting, e }); err != nil {
			return err
		}
	}
	if err := t.sandbox.Release(ctx, t.key.id); err != nil {
		return err
	}
	fpReleased.Hit()
	return t.runtime.deactivate(ctx, t.key.id)
}

// told is the first process's exit, if that was told, or nil.
func (t *Task) told() *exit {
	t.process.mu.Lock()
	defer t.process.mu.Unlock()
	if !t.isDone() || t.process.buried {
		return nil
	}
	e := t.process.exit
	return &e
}

// forget ends a task that was released.
func (t *Task) forget() error {
	if err := t.erase(); err != nil {
		return err
	}
	fpErased.Hit()
	t.runtime.forget(t)
	for _, p := range t.processes() {
		p.bury()
	}
	return nil
}
