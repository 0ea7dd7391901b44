package tasks

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/protobuf/types"
	"github.com/containerd/errdefs"
)

var _ runtime.Task = lost{}

// lost is a recorded task that could not be restored, most often since its
// sandbox is quarantined. Its processes may well run. Without it containerd
// would find no task, and CRI would write down that the container has exited,
// for kubelet to start it a second time; so it is found, and says of nothing
// but its cause. CRI then has the container in the state Unknown until a
// restart finds what was repaired.
type lost struct {
	key
	cause error
}

// quarantine keeps a task that is not restored.
func (r *Runtime) quarantine(k key, cause error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken[k] = lost{k, fmt.Errorf("task %s is not restored: %v: %w", k.id, cause, errdefs.ErrUnavailable)}
}

// missing returns a task that is not restored as it is found by id.
func (r *Runtime) missing(k key) (lost, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l, ok := r.broken[k]
	return l, ok
}

func (l lost) ID() string                                           { return l.id }
func (l lost) Namespace() string                                    { return l.namespace }
func (l lost) State(context.Context) (runtime.State, error)         { return runtime.State{}, l.cause }
func (l lost) Kill(context.Context, uint32, bool) error             { return l.cause }
func (l lost) ResizePty(context.Context, runtime.ConsoleSize) error { return l.cause }
func (l lost) CloseIO(context.Context) error                        { return l.cause }
func (l lost) Start(context.Context) error                          { return l.cause }
func (l lost) Wait(context.Context) (*runtime.Exit, error)          { return nil, l.cause }
func (l lost) PID(context.Context) (uint32, error)                  { return 0, l.cause }
func (l lost) Pause(context.Context) error                          { return l.cause }
func (l lost) Resume(context.Context) error                         { return l.cause }
func (l lost) Pids(context.Context) ([]runtime.ProcessInfo, error)  { return nil, l.cause }
func (l lost) Checkpoint(context.Context, string, *types.Any) error { return l.cause }
func (l lost) Stats(context.Context) (*types.Any, error)            { return nil, l.cause }
func (l lost) Process(context.Context, string) (runtime.ExecProcess, error) {
	return nil, l.cause
}

func (l lost) Update(context.Context, *types.Any, map[string]string) error {
	return l.cause
}

func (l lost) Exec(context.Context, string, runtime.ExecOpts) (runtime.ExecProcess, error) {
	return nil, l.cause
}
