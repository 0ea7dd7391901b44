package tasks

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/protobuf/types"
	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
)

var _ runtime.Task = (*lost)(nil)

// lost is a recorded task that could not be restored, most often since its
// sandbox is quarantined. Its processes may well run. Without it containerd
// would find no task, and CRI would write down that the container has exited,
// for kubelet to start it a second time; so it is found, and says of nothing
// but its cause. CRI then has the container in the state Unknown until it is
// stopped, or until a restart finds what was repaired.
type lost struct {
	key
	cause error
	turn  chan struct{} // holds one element while it is tried again
}

// quarantine keeps a task that is not restored.
func (r *Runtime) quarantine(k key, cause error) *lost {
	l := &lost{k, fmt.Errorf("task %s is not restored: %v: %w", k.id, cause, errdefs.ErrUnavailable), make(chan struct{}, 1)}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken[k] = l
	return l
}

func (r *Runtime) missing(k key) *lost {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.broken[k]
}

// retry restores a task that was not, if that is possible by now. Whoever asks
// for a task wants it, and an attempt that fails touches nothing. All share the
// result of an attempt that began after they asked.
func (r *Runtime) retry(ctx context.Context, k key) *lost {
	if r.missing(k) == nil {
		return nil // as nearly always
	}
	ctx, cancel := context.WithTimeout(ctx, restoreTimeout)
	defer cancel()
	for {
		l := r.missing(k)
		if l == nil {
			return nil
		}
		began := len(l.turn) > 0 // an attempt had, which may not see what was mended since
		select {
		case l.turn <- struct{}{}:
		case <-ctx.Done():
			return l
		}
		now := r.missing(k)
		if now == l {
			now = r.attend(ctx, k)
			began = false
		}
		<-l.turn
		if !began {
			return now
		}
	}
}

// attend is one attempt. It is not torn when who asked gives up.
func (r *Runtime) attend(ctx context.Context, k key) *lost {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), restoreTimeout)
	defer cancel()
	t, err := r.load(k, func(id string) (*sandbox.Live, error) { return r.recover(ctx, id) })
	switch {
	case errdefs.IsNotFound(err): // somebody gave it up
	case err != nil:
		return r.quarantine(k, err)
	case t == nil:
		if err := r.disown(ctx, k); err != nil {
			return r.quarantine(k, err)
		}
	default:
		r.add(t)
		r.revive(ctx, []*Task{t})
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.broken, k)
	return nil
}

// await restores a task when its sandbox is recovered, whoever asked for that.
func (r *Runtime) await(k key) {
	var s saved
	if _, err := record.Read(r.recordPath(k), &s); err != nil {
		return // it needs a hand
	}
	for _, c := range r.cfg.Controllers {
		if c.Name() == s.Sandboxer && c.Await(r.life, s.Sandbox) == nil {
			r.retry(r.life, k)
		}
	}
}

func (l *lost) ID() string                                           { return l.id }
func (l *lost) Namespace() string                                    { return l.namespace }
func (l *lost) State(context.Context) (runtime.State, error)         { return runtime.State{}, l.cause }
func (l *lost) Kill(context.Context, uint32, bool) error             { return l.cause }
func (l *lost) ResizePty(context.Context, runtime.ConsoleSize) error { return l.cause }
func (l *lost) CloseIO(context.Context) error                        { return l.cause }
func (l *lost) Start(context.Context) error                          { return l.cause }
func (l *lost) Wait(context.Context) (*runtime.Exit, error)          { return nil, l.cause }
func (l *lost) PID(context.Context) (uint32, error)                  { return 0, l.cause }
func (l *lost) Pause(context.Context) error                          { return l.cause }
func (l *lost) Resume(context.Context) error                         { return l.cause }
func (l *lost) Pids(context.Context) ([]runtime.ProcessInfo, error)  { return nil, l.cause }
func (l *lost) Checkpoint(context.Context, string, *types.Any) error { return l.cause }
func (l *lost) Stats(context.Context) (*types.Any, error)            { return nil, l.cause }
func (l *lost) Process(context.Context, string) (runtime.ExecProcess, error) {
	return nil, l.cause
}

func (l *lost) Update(context.Context, *types.Any, map[string]string) error {
	return l.cause
}

func (l *lost) Exec(context.Context, string, runtime.ExecOpts) (runtime.ExecProcess, error) {
	return nil, l.cause
}
