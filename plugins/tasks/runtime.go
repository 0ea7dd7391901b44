package tasks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
)

var _ Inner = (*Runtime)(nil)

// Config of a Runtime.
type Config struct {
	Stock       Inner // for tasks that are not ours
	Controllers []*sandbox.Controller
	Mounts      mount.Manager // may be nil
	Publisher   events.Publisher
	Containers  containers.Store
	Dir         string // of the records
}

// Runtime is containerd's task runtime. It owns the tasks of our sandboxes:
// their states, cached from what their agents say, and their records.
type Runtime struct {
	cfg  Config
	life context.Context

	mu     sync.Mutex
	tasks  map[key]*Task
	broken map[key]lost // not restored
	agents map[agentID]*follower
}

// key of a task: ids are unique in a namespace.
type key struct{ namespace, id string }

// New opens a Runtime and brings back what is recorded in cfg.Dir.
func New(ctx context.Context, cfg Config) (*Runtime, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open tasks: %w", err)
	}
	r := &Runtime{
		cfg:    cfg,
		life:   context.WithoutCancel(ctx),
		tasks:  map[key]*Task{},
		broken: map[key]lost{},
		agents: map[agentID]*follower{},
	}
	r.restore(ctx)
	return r, nil
}

// ID is the stock runtime's: clients know it.
func (r *Runtime) ID() string { return r.cfg.Stock.ID() }

// find returns the sandbox of that id, or nil if it is not ours.
func (r *Runtime) find(id string) (*sandbox.Live, error) {
	if id == "" {
		return nil, nil
	}
	for _, c := range r.cfg.Controllers {
		live, err := c.Get(id)
		if !errdefs.IsNotFound(err) {
			return live, err
		}
	}
	return nil, nil
}

// own returns one of our tasks, or nil.
func (r *Runtime) own(ctx context.Context, id string) (*Task, error) {
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tasks[key{namespace, id}], nil
}

// Get implements runtime.PlatformRuntime.
func (r *Runtime) Get(ctx context.Context, id string) (runtime.Task, error) {
	t, err := r.own(ctx, id)
	if err != nil {
		return nil, err
	}
	if t == nil {
		namespace, _ := namespaces.Namespace(ctx)
		if l, ok := r.missing(key{namespace, id}); ok {
			return l, nil
		}
		return r.cfg.Stock.Get(ctx, id)
	}
	return t, nil
}

// Tasks implements runtime.PlatformRuntime.
func (r *Runtime) Tasks(ctx context.Context, all bool) ([]runtime.Task, error) {
	list, err := r.cfg.Stock.Tasks(ctx, all)
	if err != nil {
		return nil, err
	}
	var namespace string
	if !all {
		if namespace, err = namespaces.NamespaceRequired(ctx); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, t := range r.tasks {
		if all || k.namespace == namespace {
			list = append(list, t)
		}
	}
	return list, nil
}

// add takes a task in, unless its id is taken.
func (r *Runtime) add(t *Task) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tasks[t.key] != nil {
		return fmt.Errorf("task %s: %w", t.key.id, errdefs.ErrAlreadyExists)
	}
	r.tasks[t.key] = t
	return nil
}

func (r *Runtime) forget(t *Task) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tasks[t.key] == t {
		delete(r.tasks, t.key)
	}
}

// activate has the mount manager do what a plain mount cannot, and returns
// the mounts that are left to do.
func (r *Runtime) activate(ctx context.Context, id string, rootfs []mount.Mount) ([]mount.Mount, error) {
	if r.cfg.Mounts == nil {
		return rootfs, nil
	}
	info, err := r.cfg.Mounts.Activate(ctx, id, rootfs, mount.WithLabels(map[string]string{
		"containerd.io/gc.bref.container": id, // lives as long as the container
	}))
	switch {
	case err == nil:
		return info.System, nil
	case errdefs.IsAlreadyExists(err):
		info, err := r.cfg.Mounts.Info(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("look up active mounts of %s: %w", id, err)
		}
		return info.System, nil
	case errdefs.IsNotImplemented(err): // it has nothing to do
		return rootfs, nil
	}
	return nil, fmt.Errorf("activate mounts of %s: %w", id, err)
}

func (r *Runtime) deactivate(ctx context.Context, id string) error {
	if r.cfg.Mounts == nil {
		return nil
	}
	if err := r.cfg.Mounts.Deactivate(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("deactivate mounts of %s: %w", id, err)
	}
	return nil
}

// ignore drops an error of a class that means that the work is done already.
func ignore(err error, class func(error) bool) error {
	if class(err) {
		return nil
	}
	return err
}

// gone says that an agent or its container is no longer there.
func gone(err error) bool { return errdefs.IsNotFound(err) || errors.Is(err, os.ErrNotExist) }
