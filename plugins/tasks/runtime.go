package tasks

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/task"
	"github.com/containerd-kuasar/containerd-kuasar/task/stream"
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
	life context.Context // until Close
	stop context.CancelFunc

	streams func() (*stream.Host, error) // as soon as there is a guest

	mu       sync.Mutex
	tasks    map[key]*Task
	broken   map[key]*lost // not restored
	agents   map[*task.Client]*follower
	pursuits map[string]*pursuit  // by pod
	mute     map[string]time.Time // by pod, of those whose guests do not answer: until when
}

// key of a task: ids are unique in a namespace.
type key struct{ namespace, id string }

// New opens a Runtime and brings back what is recorded in cfg.Dir.
func New(ctx context.Context, cfg Config) (*Runtime, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open tasks: %w", err)
	}
	r := &Runtime{
		cfg:      cfg,
		tasks:    map[key]*Task{},
		broken:   map[key]*lost{},
		agents:   map[*task.Client]*follower{},
		mute:     map[string]time.Time{},
		pursuits: map[string]*pursuit{},

		streams: sync.OnceValues(newStreams),
	}
	r.life, r.stop = context.WithCancel(context.WithoutCancel(ctx))
	r.restore(ctx)
	return r, nil
}

// Close stops following agents. Tasks run on, for the next Runtime to restore.
func (r *Runtime) Close() error {
	r.stop()
	return nil
}

// ID is the stock runtime's: clients know it.
func (r *Runtime) ID() string { return r.cfg.Stock.ID() }

// find returns the sandbox of that id, or nil if no sandboxer that runs has it.
// That does not make it gone: see serves.
func (r *Runtime) find(id string) (*sandbox.Live, error) {
	return r.look(id, func(c *sandbox.Controller) (*sandbox.Live, error) { return c.Get(id) })
}

// recover is find for one that may be quarantined: its recovery is tried again.
func (r *Runtime) recover(ctx context.Context, id string) (*sandbox.Live, error) {
	return r.look(id, func(c *sandbox.Controller) (*sandbox.Live, error) { return c.Recover(ctx, id) })
}

func (r *Runtime) look(id string, get func(*sandbox.Controller) (*sandbox.Live, error)) (*sandbox.Live, error) {
	if id == "" {
		return nil, nil
	}
	for _, c := range r.cfg.Controllers {
		live, err := get(c)
		if !errdefs.IsNotFound(err) {
			return live, err
		}
	}
	return nil, nil
}

// serves says whether a sandboxer runs. One that could not start is left out,
// and its sandboxes live on.
func (r *Runtime) serves(sandboxer string) bool {
	return slices.ContainsFunc(r.cfg.Controllers, func(c *sandbox.Controller) bool { return c.Name() == sandboxer })
}

// own returns one of our tasks, or nil. One that is only half made is none. One
// that was not restored is tried again, and lost if that fails.
func (r *Runtime) own(ctx context.Context, id string) (*Task, *lost, error) {
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, nil, err
	}
	k := key{namespace, id}
	if l := r.retry(ctx, k); l != nil {
		return nil, l, nil
	}
	r.mu.Lock()
	t := r.tasks[k]
	r.mu.Unlock()
	if t == nil || t.phase() == creating {
		return nil, nil, nil
	}
	return t, nil, nil
}

// Get implements runtime.PlatformRuntime.
func (r *Runtime) Get(ctx context.Context, id string) (runtime.Task, error) {
	t, l, err := r.own(ctx, id)
	switch {
	case err != nil:
		return nil, err
	case l != nil:
		return l, nil
	case t != nil:
		return t, nil
	}
	return r.cfg.Stock.Get(ctx, id)
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
	for _, t := range r.all() {
		if (all || t.key.namespace == namespace) && t.phase() != creating {
			list = append(list, t)
		}
	}
	return list, nil
}

// add takes a task in, unless another has its id: that is returned then.
func (r *Runtime) add(t *Task) (former *Task) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if former := r.tasks[t.key]; former != nil {
		return former
	}
	r.tasks[t.key] = t
	return nil
}

// lacks says that the task was deleted.
func (r *Runtime) lacks(t *Task) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tasks[t.key] != t
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

func (r *Runtime) forget(t *Task) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tasks[t.key] == t {
		delete(r.tasks, t.key)
	}
}

// ignore drops an error of a class that means that the work is done already.
func ignore(err error, class func(error) bool) error {
	if class(err) {
		return nil
	}
	return err
}
