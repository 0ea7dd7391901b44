package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/events"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

var _ core.Controller = (*Controller)(nil)

// closeTimeout bounds Close: a daemon that is to stop does not wait for a
// backend that does not.
const closeTimeout = 5 * time.Second

// Config of a Controller.
type Config struct {
	Name    string // the sandboxer's, as in containerd's config
	Dir     string // holds a directory for each sandbox; the Controller's own
	Backend Backend

	// Events gets those about sandboxes; nil for nobody.
	Events events.Publisher
}

// Controller serves containerd's sandbox API for one Backend. It owns the
// sandboxes' states, records and directories. Ids are unique among all
// namespaces.
type Controller struct {
	cfg  Config
	life context.Context // of the Controller
	stop context.CancelFunc
	work sync.WaitGroup // goroutines that end with life

	mu    sync.Mutex // guards what follows and what is added to work
	boxes map[string]*box
}

// New makes a Controller and recovers what is recorded in cfg.Dir. It returns
// when every sandbox is recovered or quarantined, after recoverPatience at
// most; what is slow goes on in the background.
func New(ctx context.Context, cfg Config) (*Controller, error) {
	// Containers of other users pass through it to their root file systems.
	err := os.MkdirAll(cfg.Dir, 0o711)
	if err == nil {
		// Mounts have their real paths in mountinfo.
		cfg.Dir, err = filepath.EvalSymlinks(cfg.Dir)
	}
	if err != nil {
		return nil, fmt.Errorf("open sandboxer %s: %w", cfg.Name, err)
	}
	c := &Controller{cfg: cfg, boxes: map[string]*box{}}
	ctx = log.WithLogger(ctx, log.G(ctx).WithField(keySandboxer, cfg.Name))
	c.life, c.stop = context.WithCancel(context.WithoutCancel(ctx))
	if err := c.recover(ctx); err != nil {
		c.stop()
		return nil, fmt.Errorf("open sandboxer %s: %w", cfg.Name, err)
	}
	return c, nil
}

// Close ends the Controller, and its backend if that is an io.Closer. Sandboxes
// run on, for the next one to recover.
func (c *Controller) Close() error {
	c.mu.Lock()
	c.stop()
	c.mu.Unlock()
	var failed error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.work.Wait()
		if b, ok := c.cfg.Backend.(io.Closer); ok {
			failed = b.Close()
		}
	}()
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-ended:
		return failed
	case <-timer.C:
		return fmt.Errorf("close sandboxer %s: its backend does not let go of a sandbox: %w", c.cfg.Name, errdefs.ErrUnavailable)
	}
}

// run starts a goroutine that Close waits for, unless it was called already.
func (c *Controller) run(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.life.Err() == nil {
		c.work.Go(f)
	}
}

// Name is the sandboxer's.
func (c *Controller) Name() string { return c.cfg.Name }

// CreatedAt says when a sandbox was made, and whether it is one of ours.
func (c *Controller) CreatedAt(id string) (at time.Time, found bool) {
	b, err := c.box(id)
	if err != nil {
		return time.Time{}, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.createdAt, true
}

func (c *Controller) box(id string) (*box, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, found := c.boxes[id]
	if !found {
		return nil, fmt.Errorf("sandbox %s is not one of sandboxer %s: %w", id, c.cfg.Name, errdefs.ErrNotFound)
	}
	return b, nil
}

// admit puts a new sandbox in, unless its id is taken, or its name by a live
// one: containerd's CRI plugin forgets the names of our sandboxes at its
// restart. One that could not be deleted is tried once more: nobody else would.
func (c *Controller) admit(ctx context.Context, b *box) error {
	for tried := false; ; tried = true {
		other := c.add(b)
		if other == nil {
			return nil
		}
		state, _ := other.current()
		err := fmt.Errorf("its id is taken, by one that is %s: %w", state, errdefs.ErrAlreadyExists)
		if other.id != b.id {
			err = fmt.Errorf("its name %s is reserved for sandbox %s, which is %s: %w", b.name, other.id, state, errdefs.ErrAlreadyExists)
		}
		if state != Deleting || tried {
			return err
		}
		if failure := c.retry(ctx, other); failure != nil {
			return errors.Join(err, failure)
		}
	}
}

// retry deletes a sandbox of which something was left.
func (c *Controller) retry(ctx context.Context, b *box) error {
	end, err := b.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if state, _ := b.current(); state != Deleting {
		return nil
	}
	return c.discard(ctx, b)
}

// add puts b in and returns nil, or what is in its way.
func (c *Controller) add(b *box) *box {
	c.mu.Lock()
	defer c.mu.Unlock()
	if other := c.boxes[b.id]; other != nil {
		return other
	}
	if b.name != "" {
		for _, other := range c.boxes {
			if other.named(b.namespace, b.name) {
				return other
			}
		}
	}
	c.boxes[b.id] = b
	return nil
}

func (b *box) named(namespace, name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.name == name && b.namespace == namespace
}

// forget ends a sandbox of which nothing is left.
func (c *Controller) forget(ctx context.Context, b *box) {
	if err := b.resume(ctx, Deleted); err != nil {
		log.G(ctx).WithError(err).Error("sandbox is forgotten in a state that it should not be in")
	}
	b.finish(ctx, lost())
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.boxes[b.id] == b {
		delete(c.boxes, b.id)
	}
}

// publish sends an event about a sandbox, in its namespace.
func (c *Controller) publish(ctx context.Context, b *box, topic string, event events.Event) {
	b.mu.Lock()
	namespace := b.namespace
	b.mu.Unlock()
	if c.cfg.Events == nil || namespace == "" { // what had been lost with a record
		return
	}
	// The caller may have given up; what happened has happened.
	ctx = namespaces.WithNamespace(context.WithoutCancel(ctx), namespace)
	if err := c.cfg.Events.Publish(ctx, topic, event); err != nil {
		log.G(ctx).WithError(err).WithField(keySandbox, b.id).Warn("event " + topic + " is not published")
	}
}
