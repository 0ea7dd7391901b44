package sandbox

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
)

var _ core.Controller = (*Controller)(nil)

// Config of a Controller.
type Config struct {
	Name    string // the sandboxer's, as in containerd's config
	Dir     string // holds a directory for each sandbox; the Controller's own
	Backend Backend
}

// Controller serves containerd's sandbox API for one Backend. It owns the
// sandboxes' states, records and directories.
type Controller struct {
	cfg  Config
	life context.Context // of the Controller
	stop context.CancelFunc

	mu    sync.Mutex
	boxes map[string]*box
}

// New makes a Controller and recovers what is recorded in cfg.Dir. It returns
// when every sandbox is recovered or quarantined, after recoverTimeout at most.
func New(ctx context.Context, cfg Config) (*Controller, error) {
	// Containers of other users pass through it to their root file systems.
	if err := os.MkdirAll(cfg.Dir, 0o711); err != nil {
		return nil, fmt.Errorf("open sandboxer %s: %w", cfg.Name, err)
	}
	c := &Controller{cfg: cfg, boxes: map[string]*box{}}
	c.life, c.stop = context.WithCancel(context.WithoutCancel(ctx))
	if err := c.recover(ctx); err != nil {
		c.stop()
		return nil, fmt.Errorf("open sandboxer %s: %w", cfg.Name, err)
	}
	return c, nil
}

// Close ends the Controller. Sandboxes run on, for the next one to recover.
func (c *Controller) Close() error {
	c.stop()
	return nil
}

// Name is the sandboxer's.
func (c *Controller) Name() string { return c.cfg.Name }

func (c *Controller) box(id string) (*box, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, found := c.boxes[id]
	if !found {
		return nil, fmt.Errorf("sandbox %s is not one of sandboxer %s: %w", id, c.cfg.Name, errdefs.ErrNotFound)
	}
	return b, nil
}

// add puts a new sandbox in, unless its id is taken, or its name by a live one:
// containerd's CRI plugin forgets the names of our sandboxes at its restart.
func (c *Controller) add(b *box) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, found := c.boxes[b.spec.ID]; found {
		return fmt.Errorf("sandbox %s: %w", b.spec.ID, errdefs.ErrAlreadyExists)
	}
	for id, other := range c.boxes {
		if b.spec.Name != "" && other.spec.Name == b.spec.Name && other.spec.Namespace == b.spec.Namespace {
			return fmt.Errorf("sandbox %s: its name %s is reserved for sandbox %s: %w", b.spec.ID, b.spec.Name, id, errdefs.ErrAlreadyExists)
		}
	}
	c.boxes[b.spec.ID] = b
	return nil
}

func (c *Controller) forget(b *box) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.boxes[b.spec.ID] == b {
		delete(c.boxes, b.spec.ID)
	}
}

// Live is a sandbox that containers may be put into.
type Live struct {
	Sandbox
	box *box
}

// Get returns a running sandbox. Its errors are errdefs.ErrNotFound for one
// that is not of this sandboxer, and ErrFailedPrecondition with the reason for
// one that does not run.
func (c *Controller) Get(id string) (*Live, error) {
	b, err := c.box(id)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sandbox == nil {
		return nil, fmt.Errorf("sandbox %s is quarantined: %s: %w", id, b.reason, errdefs.ErrFailedPrecondition)
	}
	return &Live{Sandbox: b.sandbox, box: b}, nil
}

// Running says whether the sandbox can take containers.
func (l *Live) Running() bool {
	state, _ := l.box.current()
	return state == Running
}

// Done is closed when the sandbox has ended; Exit then says how.
func (l *Live) Done() <-chan struct{} { return l.box.done }

// Exit says how the sandbox ended.
func (l *Live) Exit() Exit {
	l.box.mu.Lock()
	defer l.box.mu.Unlock()
	return l.box.exit
}

// Dir is the sandbox's own directory.
func (l *Live) Dir() string { return l.box.spec.Dir }

// Prepare is the sandbox's, without its panics.
func (l *Live) Prepare(ctx context.Context, container *Container) (bundle Bundle, err error) {
	err = guard("prepare container in", l.box.spec.ID, func() error {
		bundle, err = l.Sandbox.Prepare(ctx, container)
		return err
	})
	return bundle, err
}

// Release is the sandbox's, without its panics.
func (l *Live) Release(ctx context.Context, id string) error {
	return guard("release container in", l.box.spec.ID, func() error { return l.Sandbox.Release(ctx, id) })
}

// CreatedAt says when a sandbox was made, and whether it is one of ours.
func (c *Controller) CreatedAt(id string) (at time.Time, found bool) {
	b, err := c.box(id)
	if err != nil {
		return time.Time{}, false
	}
	return b.spec.CreatedAt, true
}
