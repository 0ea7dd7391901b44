package sandboxtest

import (
	"context"
	"encoding/json"
	"sync"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
)

// point names a moment of a backend's work: before or after one of its calls.
type point string

const (
	beforeCreate point = "before create"
	afterCreate  point = "after create"
	beforeStart  point = "before start"
	afterStart   point = "after start"
	beforeStop   point = "before stop"
	afterStop    point = "after stop"
	beforeDelete point = "before delete"
	afterDelete  point = "after delete"
)

// gate is a backend that holds the calls of another at one point. What comes
// there is stuck, as if the daemon had died at that moment, until the gate is
// opened or the call is canceled; a call that was canceled goes on if canceled
// calls are to, since a dead daemon does not.
type gate struct {
	sandbox.Backend
	at      point
	cancels bool
	once    sync.Once
	reached chan struct{} // closed when a call is stuck
	open    chan struct{} // closed by who lets it go on
}

func newGate(b sandbox.Backend, at point) *gate {
	return &gate{Backend: b, at: at, reached: make(chan struct{}), open: make(chan struct{})}
}

func (g *gate) pass(ctx context.Context, p point) {
	if g.at != p {
		return
	}
	g.once.Do(func() { close(g.reached) })
	var canceled <-chan struct{}
	if g.cancels {
		canceled = ctx.Done()
	}
	select {
	case <-g.open:
	case <-canceled:
	}
}

// Create implements sandbox.Backend.
func (g *gate) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	g.pass(ctx, beforeCreate)
	s, err := g.Backend.Create(ctx, spec)
	g.pass(ctx, afterCreate)
	if err != nil {
		return nil, err
	}
	return &gated{s, g}, nil
}

// Restore implements sandbox.Backend.
func (g *gate) Restore(ctx context.Context, spec sandbox.Spec, saved json.RawMessage) (sandbox.Sandbox, error) {
	s, err := g.Backend.Restore(ctx, spec, saved)
	if err != nil {
		return nil, err
	}
	return &gated{s, g}, nil
}

// gated is a sandbox behind a gate. It has nothing that is optional.
type gated struct {
	sandbox.Sandbox
	gate *gate
}

// Start implements sandbox.Sandbox.
func (s *gated) Start(ctx context.Context) error {
	s.gate.pass(ctx, beforeStart)
	err := s.Sandbox.Start(ctx)
	s.gate.pass(ctx, afterStart)
	return err
}

// Stop implements sandbox.Sandbox.
func (s *gated) Stop(ctx context.Context) error {
	s.gate.pass(ctx, beforeStop)
	err := s.Sandbox.Stop(ctx)
	s.gate.pass(ctx, afterStop)
	return err
}

// Delete implements sandbox.Sandbox.
func (s *gated) Delete(ctx context.Context) error {
	s.gate.pass(ctx, beforeDelete)
	err := s.Sandbox.Delete(ctx)
	s.gate.pass(ctx, afterDelete)
	return err
}
