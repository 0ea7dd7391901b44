package stream

import (
	"context"
	"os"
	"sync"

	"github.com/containerd/log"

	"github.com/containerd-kuasar/containerd-kuasar/task/stdio"
)

// Host opens the host's end of guests' stdio.
type Host struct{ stdio stdio.Opener }

// NewHost makes one that opens what containerd names with s.
func NewHost(s stdio.Opener) *Host { return &Host{s} }

// Open opens the stdio of a process that is about to start. It blocks until
// somebody reads each output FIFO.
func (h *Host) Open(ctx context.Context, cfg stdio.Config) (*Carrier, error) {
	cfg = remote(cfg)
	io, err := h.stdio.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return newCarrier(io, cfg), nil
}

// Reopen opens the stdio of a process for which a former daemon did that.
func (h *Host) Reopen(ctx context.Context, cfg stdio.Config) (*Carrier, error) {
	cfg = remote(cfg)
	io, err := h.stdio.Reopen(ctx, cfg, nil)
	if err != nil {
		return nil, err
	}
	return newCarrier(io, cfg), nil
}

// remote leaves to the guest what is its business.
func remote(cfg stdio.Config) stdio.Config {
	if cfg.Terminal {
		cfg.Terminal, cfg.Stderr = false, ""
	}
	cfg.Remote, cfg.Retain = true, false
	return cfg
}

// Carrier is the host's end of one process's stdio.
type Carrier struct {
	io      stdio.IO
	cfg     stdio.Config
	ctx     context.Context // until Close
	cancel  context.CancelFunc
	drained chan struct{}

	exited context.Context // until Exited
	late   context.CancelFunc

	mu       sync.Mutex
	attached bool
	closed   bool
	all      sync.WaitGroup // goroutines
}

func newCarrier(io stdio.IO, cfg stdio.Config) *Carrier {
	c := &Carrier{io: io, cfg: cfg, drained: make(chan struct{})}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.exited, c.late = context.WithCancel(context.Background())
	return c
}

// Places are how much of outputs is delivered already, in bytes.
type Places struct{ Stdout, Stderr uint64 }

// Attach begins to copy, once the guest has the process. It goes on in the
// background, also with another connection if one breaks. Repeated, it does
// nothing.
func (c *Carrier) Attach(from Source, at Places) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.attached || c.closed {
		return
	}
	c.attached = true
	in, out, errs := c.io.Files()
	var outputs sync.WaitGroup
	for k, f := range [kinds]*os.File{in, out, errs} {
		if f == nil && (kind(k) != stdin || c.cfg.Stdin == "") {
			continue
		}
		s := &stream{
			name: name(c.cfg.Namespace, c.cfg.Container, c.cfg.Exec, kind(k)), kind: kind(k), file: f,
			at: [kinds]uint64{stdout: at.Stdout, stderr: at.Stderr}[k], exited: c.exited, left: lateTime,
		}
		if s.kind != stdin {
			outputs.Add(1)
		}
		c.all.Go(func() {
			if s.kind != stdin {
				defer outputs.Done()
			}
			c.carry(s, from)
		})
	}
	c.all.Go(func() {
		outputs.Wait()
		if err := c.io.Exited(c.ctx); err != nil { // what nobody has read yet is kept
			log.L.WithError(err).WithField("container", c.cfg.Container).Warn("output of a guest's process is late or lost")
		}
		close(c.drained)
	})
}

// carry copies until the stream ends: then its reader sees the end.
func (c *Carrier) carry(s *stream, from Source) {
	if s.file != nil {
		defer s.file.Close()
	}
	if err := s.carry(c.ctx, from); err != nil && c.ctx.Err() == nil {
		log.L.WithError(err).WithField("stream", s.name).Info("a guest's stream ended early")
	}
}

// Exited says that the container has: all of its output is in the guest, which is
// not waited for without end from now on. Idempotent.
func (c *Carrier) Exited() { c.late() }

// CloseStdin ends stdin once what is in its FIFO was sent, and no client has
// that open. The guest's end has to be closed, too; see stdio.IO.
func (c *Carrier) CloseStdin() error { return c.io.CloseStdin() }

// Drain waits until all output is where the Config said.
func (c *Carrier) Drain(ctx context.Context) error {
	select {
	case <-c.drained:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Close lets go of everything. What was not delivered stays with the guest, as
// long as it has the process; what nobody has read of the rest is lost.
// Idempotent.
func (c *Carrier) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.all.Wait()
	c.late()
	return c.io.Close()
}
