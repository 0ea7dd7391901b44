package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/api/events"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
)

var (
	fpStopping = failpoint.New("sandbox/stop/recorded")
	fpStopped  = failpoint.New("sandbox/stop/stopped")
	fpDeleting = failpoint.New("sandbox/delete/recorded")
	fpDeleted  = failpoint.New("sandbox/delete/deleted")
)

const (
	// cleanupTimeout bounds what is undone after a failed or canceled call.
	cleanupTimeout = 30 * time.Second

	// settleTimeout is how long after its Stop returned a sandbox may take to
	// say how it ended.
	settleTimeout = 5 * time.Second
)

// Stop ends the sandbox and everything in it. Idempotent; it cancels a Start
// that is under way. A quarantined sandbox is recovered first, and left alone
// with an error if that fails again.
func (c *Controller) Stop(ctx context.Context, id string, opts ...core.StopOpt) (err error) {
	ctx, span := c.trace(ctx, "sandbox.Stop", id)
	defer span.End(&err)
	var o core.StopOptions
	for _, opt := range opts {
		opt(&o)
	}
	if o.Timeout != nil && *o.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *o.Timeout)
		defer cancel()
	}
	return c.terminate(ctx, id, c.halt)
}

// Shutdown stops the sandbox if it runs, and removes everything of it.
// Idempotent. For a quarantined sandbox it does what Stop does.
func (c *Controller) Shutdown(ctx context.Context, id string) (err error) {
	ctx, span := c.trace(ctx, "sandbox.Shutdown", id)
	defer span.End(&err)
	return c.terminate(ctx, id, func(ctx context.Context, b *box) error {
		if err := c.halt(ctx, b); err != nil {
			return err
		}
		return c.delete(ctx, b)
	})
}

// terminate calls f when it is its turn. A sandbox that does not exist is
// stopped and deleted already.
func (c *Controller) terminate(ctx context.Context, id string, f func(context.Context, *box) error) error {
	b, err := c.box(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer b.interrupt()()
	end, err := b.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if err := c.release(ctx, b); err != nil {
		return err
	}
	return f(ctx, b)
}

// halt stops a sandbox, in whatever state it is.
func (c *Controller) halt(ctx context.Context, b *box) error {
	state, sandbox := b.current()
	switch state {
	case Deleted:
		return nil
	case Deleting:
		return c.discard(ctx, b) // what was left of it
	case Stopped:
		// It may have ended by itself: some of it may be left.
		return c.kill(ctx, b, sandbox)
	}
	if err := b.fall(ctx, Stopping); err != nil {
		if now, _ := b.current(); now != Stopped { // it ended at this moment
			return err
		}
	}
	fpStopping.Hit()
	if err := c.kill(ctx, b, sandbox); err != nil {
		return err
	}
	fpStopped.Hit()
	c.settle(ctx, b)
	return b.fall(ctx, Stopped)
}

func (c *Controller) kill(ctx context.Context, b *box, sandbox Sandbox) error {
	if sandbox == nil {
		return nil
	}
	if err := try(ctx, b.id, "stop", sandbox.Stop); err != nil {
		return fmt.Errorf("stop sandbox %s: %w", b.id, err)
	}
	return nil
}

// settle waits until a stopped sandbox said how it ended.
func (c *Controller) settle(ctx context.Context, b *box) {
	b.mu.Lock()
	watched := b.watched
	b.mu.Unlock()
	if !watched {
		c.end(ctx, b, Exit{At: time.Now()}) // it never ran
		return
	}
	timer := time.NewTimer(settleTimeout)
	defer timer.Stop()
	select {
	case <-b.done:
		return
	case <-timer.C:
	case <-ctx.Done():
	}
	log.G(ctx).WithField(keySandbox, b.id).Warn("stopped sandbox does not say how it ended")
	c.end(ctx, b, lost())
}

// delete removes a stopped sandbox.
func (c *Controller) delete(ctx context.Context, b *box) error {
	state, sandbox := b.current()
	if state == Deleted {
		return nil
	}
	if err := b.fall(ctx, Deleting); err != nil {
		return err
	}
	fpDeleting.Hit()
	if sandbox != nil {
		if err := try(ctx, b.id, "delete", sandbox.Delete); err != nil {
			return fmt.Errorf("delete sandbox %s: %w", b.id, err)
		}
	}
	fpDeleted.Hit()
	if err := b.remove(); err != nil {
		return err
	}
	c.forget(ctx, b)
	return nil
}

// discard stops and removes what nobody will ask for: a sandbox whose Create or
// Start failed or died with the daemon, or whose removal did. It does so also
// for a caller that gave up.
func (c *Controller) discard(ctx context.Context, b *box) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if err := b.fall(ctx, Deleting); err != nil {
		return err
	}
	_, sandbox := b.current()
	err := c.kill(ctx, b, sandbox)
	if err == nil {
		err = c.delete(ctx, b)
	}
	if err != nil {
		return errors.Join(err, fmt.Errorf("something of sandbox %s is left and will be removed by the next daemon", b.id))
	}
	return nil
}

func exited(id string, e Exit) *events.SandboxExit {
	return &events.SandboxExit{SandboxID: id, ExitStatus: e.Status, ExitedAt: timestamppb.New(e.At)}
}
