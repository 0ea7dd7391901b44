package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sync/errgroup"

	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
)

const (
	// recoverTimeout bounds the recovery of one sandbox. The CRI plugin starts
	// after it, and kubelet gives up on a runtime after two minutes.
	recoverTimeout = 20 * time.Second

	// recoverLimit is how many sandboxes are recovered at once.
	recoverLimit = 16
)

// recover brings back every sandbox that has a directory.
func (c *Controller) recover(ctx context.Context) error {
	entries, err := os.ReadDir(c.cfg.Dir)
	if err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(recoverLimit)
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
			defer cancel()
			c.recoverOne(ctx, e.Name())
			return nil
		})
	}
	return g.Wait()
}

// recoverOne brings back one sandbox, finishes its removal, or quarantines it.
func (c *Controller) recoverOne(ctx context.Context, id string) {
	log := log.G(ctx).WithField(keySandboxer, c.cfg.Name).WithField(keySandbox, id)
	dir := filepath.Join(c.cfg.Dir, id)
	var s saved
	sameBoot, err := record.Read(filepath.Join(dir, recordFile), &s)
	if errdefs.IsNotFound(err) {
		// The daemon died within Create: there is nothing but the directory.
		if err := os.Remove(dir); err != nil {
			log.WithError(err).Warn("directory without a record is left alone")
		}
		return
	}
	if err == nil && s.Spec.ID != id {
		err = fmt.Errorf("its record is of sandbox %q: %w", s.Spec.ID, errdefs.ErrDataLoss)
	}
	if err != nil {
		c.quarantine(Spec{ID: id, Dir: dir}, err)
		log.WithError(err).Error("sandbox is quarantined")
		return
	}
	s.Spec.Dir = dir
	b := newBox(s.Spec, s.Meta)
	b.state = s.State
	err = guard("restore", id, func() (err error) {
		b.sandbox, err = c.cfg.Backend.Restore(ctx, b.spec, s.Backend)
		return err
	})
	if err != nil {
		c.quarantine(s.Spec, err)
		log.WithError(err).Error("sandbox is quarantined")
		return
	}
	if s.Exit != nil {
		b.end(*s.Exit)
	}
	if err := c.resume(ctx, b, sameBoot); err != nil {
		log.WithError(err).Error("sandbox is not wholly recovered")
	}
}

// resume goes on where the record says that the sandbox was.
func (c *Controller) resume(ctx context.Context, b *box, sameBoot bool) error {
	c.mu.Lock()
	c.boxes[b.spec.ID] = b
	c.mu.Unlock()
	state, sandbox := b.current()
	switch {
	case state == Created || state == Starting || state == Deleting:
		// Nobody waits for it: the caller died with the daemon.
		return c.discard(ctx, b)
	case state == Running && sameBoot:
		go b.watch(c.life, sandbox)
		return nil
	case state == Running:
		return errors.Join(c.end(ctx, b))
	}
	b.end(Exit{Status: unknownStatus, At: time.Now()})
	return nil
}

// quarantine keeps a sandbox that could not be recovered, so that its state
// can be asked for. Nothing of it is touched.
func (c *Controller) quarantine(spec Spec, err error) {
	b := newBox(spec, meta{})
	b.state, b.reason = Quarantined, err.Error()
	b.end(Exit{Status: unknownStatus, At: time.Now()})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.boxes[spec.ID] = b
}
