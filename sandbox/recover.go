package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
)

var fpRestored = failpoint.New("sandbox/recover/restored")

const (
	// recoverTimeout bounds the recovery of one sandbox.
	recoverTimeout = 10 * time.Second

	// recoverPatience bounds what the daemon's start waits for. The CRI plugin
	// starts afterwards, and the kubelet gives up on a runtime after two
	// minutes (runtimeRequestTimeout).
	recoverPatience = 15 * time.Second

	// recoverLimit is how many sandboxes are recovered at once. One that takes
	// longer than recoverSlow does not count any more, so that no number of
	// slow ones is in the way of the others.
	recoverLimit = 16
	recoverSlow  = time.Second
)

// recover brings back every sandbox that has a directory. All are known at
// once, so that nobody takes one for lost that is being recovered.
func (c *Controller) recover(ctx context.Context) error {
	entries, err := os.ReadDir(c.cfg.Dir)
	if err != nil {
		return err
	}
	began := time.Now()
	var boxes []*box
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		b := newBox(e.Name(), filepath.Join(c.cfg.Dir, e.Name()), Recovering)
		b.createdAt = b.age()
		b.recovered = make(chan struct{})
		b.turn <- struct{}{}
		c.boxes[b.id] = b
		boxes = append(boxes, b)
	}
	var all sync.WaitGroup
	slots := make(chan struct{}, recoverLimit)
	for _, b := range boxes {
		all.Add(1)
		c.run(func() {
			defer all.Done()
			c.queue(b, slots)
		})
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		all.Wait()
	}()
	timer := time.NewTimer(recoverPatience)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		log.G(ctx).Warn("not all sandboxes are recovered yet: this goes on in the background")
	case <-ctx.Done():
		return ctx.Err()
	}
	if len(boxes) > 0 {
		log.G(ctx).WithFields(log.Fields{keyCount: len(boxes), keyDuration: time.Since(began)}).Info("recovered sandboxes")
	}
	return nil
}

// queue recovers a sandbox when there is a slot, and gives its turn free.
func (c *Controller) queue(b *box, slots chan struct{}) {
	defer func() { <-b.turn }()
	select {
	case slots <- struct{}{}:
	case <-c.life.Done():
		return
	}
	free := sync.OnceFunc(func() { <-slots })
	defer free()
	defer time.AfterFunc(recoverSlow, free).Stop()
	c.revive(c.life, b)
}

// revive makes of a sandbox what its records say, or quarantines it. Its turn
// is the caller's.
func (c *Controller) revive(ctx context.Context, b *box) {
	ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
	defer cancel()
	err := c.restore(ctx, b)
	b.mu.Lock()
	b.attempts++
	if err != nil {
		b.reason = err.Error()
	}
	b.mu.Unlock()
	if err == nil {
		close(b.recovered)
		return
	}
	err = errors.Join(err, b.resume(ctx, Quarantined))
	log.G(ctx).WithError(err).WithField(keySandbox, b.id).Error("sandbox is quarantined: nothing of it is touched")
}

// release lets a sandbox out of quarantine, if that is possible by now.
func (c *Controller) release(ctx context.Context, b *box) error {
	switch state, _ := b.current(); state {
	case Recovering: // and it is not, since its turn is ours
		return fmt.Errorf("sandbox %s is not recovered: the daemon stops: %w", b.id, errdefs.ErrUnavailable)
	case Quarantined:
	default:
		return nil
	}
	if err := b.resume(ctx, Recovering); err != nil {
		return err
	}
	c.revive(ctx, b)
	if state, _ := b.current(); state != Quarantined {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return fmt.Errorf("sandbox %s is quarantined and nothing of it is touched: %s: to give it up, end what still runs of it and move %s away: %w",
		b.id, b.reason, b.dir, errdefs.ErrFailedPrecondition)
}

// restore reads the records and goes on where they say that the sandbox was.
// Its error is a reason to touch nothing.
func (c *Controller) restore(ctx context.Context, b *box) error {
	r, err := b.load()
	if errdefs.IsNotFound(err) {
		// The daemon died within Create, or somebody gave the sandbox up.
		if err := b.sweep(); err != nil {
			log.G(ctx).WithError(err).WithField(keySandbox, b.id).Warn("directory is left alone")
		}
		c.forget(ctx, b)
		return nil
	}
	if r.Spec.ID == b.id {
		b.identify(r.Spec)
	}
	if err != nil {
		return err
	}
	ctx = namespaces.WithNamespace(ctx, r.Spec.Namespace)
	sandbox, err := c.reopen(ctx, b, r)
	if err != nil {
		return err
	}
	fpRestored.Hit()
	b.mu.Lock()
	b.sandbox, b.reason, b.resources = sandbox, "", r.Resources
	b.mu.Unlock()
	if r.Exit != nil {
		b.finish(ctx, *r.Exit)
	}
	return c.resume(ctx, b, r)
}

// reopen asks the backend, if it can have anything of the sandbox.
func (c *Controller) reopen(ctx context.Context, b *box, r recorded) (Sandbox, error) {
	if r.dead || r.Spec.ID != b.id {
		return husk{}, nil
	}
	spec := r.Spec
	spec.Dir, spec.Saved = b.dir, b.save
	sandbox, err := attempt(ctx, b.id, "restore", func() (Sandbox, error) { return c.cfg.Backend.Restore(ctx, spec, r.Backend) })
	if err == nil && sandbox == nil {
		err = fmt.Errorf("its backend restored none: %w", errdefs.ErrInternal)
	}
	return sandbox, err
}

// resume finishes what was begun. What fails of that is not a reason to
// quarantine: nothing is to survive it.
func (c *Controller) resume(ctx context.Context, b *box, r recorded) error {
	var err error
	switch {
	case r.State == Created, r.State == Starting, r.State == Deleting:
		err = c.discard(ctx, b)
	case r.dead || r.State == Stopped:
		c.end(ctx, b, lost()) // unless that is recorded
		err = b.fall(ctx, Stopped)
	default:
		err = b.resume(ctx, r.State)
		c.follow(b)
		if r.State == Stopping {
			err = errors.Join(err, c.halt(ctx, b))
		}
	}
	if err != nil {
		log.G(ctx).WithError(err).WithField(keySandbox, b.id).Error("sandbox is not wholly recovered")
	}
	return nil
}
