package sandbox

import (
	"context"
	"fmt"
	"net"

	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/task"
)

// Live is a sandbox as the task runtime has it. It stays valid when the sandbox
// ends, and through its backend's panics.
type Live struct {
	box       *box
	sandboxer string
}

// Get returns a sandbox for its containers' sake. Its errors are
// errdefs.ErrNotFound for one that is not of this sandboxer, ErrUnavailable for
// one whose recovery is under way, and ErrFailedPrecondition with the reason
// for one that is quarantined. One that does not run is returned too: what is
// left of its containers has to be released.
func (c *Controller) Get(id string) (*Live, error) {
	b, err := c.box(id)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch b.state {
	case Recovering:
		return nil, fmt.Errorf("sandbox %s is being recovered: try again: %w", id, errdefs.ErrUnavailable)
	case Quarantined:
		return nil, fmt.Errorf("sandbox %s is quarantined: %s: %w", id, b.reason, errdefs.ErrFailedPrecondition)
	}
	return &Live{b, c.cfg.Name}, nil
}

// Recover is Get for who needs the sandbox now: it waits for a recovery that is
// under way, and tries again where one has failed. All who ask during an
// attempt share its result.
func (c *Controller) Recover(ctx context.Context, id string) (*Live, error) {
	live, err := c.Get(id)
	if err == nil || errdefs.IsNotFound(err) {
		return live, err
	}
	b, err := c.box(id)
	if err != nil {
		return nil, err
	}
	tried := b.tries()
	end, err := b.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if b.tries() == tried {
		if err := c.release(ctx, b); err != nil {
			return nil, err
		}
	}
	return c.Get(id)
}

// Await blocks until the sandbox is neither being recovered nor quarantined,
// whoever brought that about. It may be gone then.
func (c *Controller) Await(ctx context.Context, id string) error {
	b, err := c.box(id)
	if err != nil || b.recovered == nil {
		return err
	}
	select {
	case <-b.recovered:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the recovery of sandbox %s: %w", id, ctx.Err())
	}
}

// Sandboxer is the name of the one that has the sandbox.
func (l *Live) Sandboxer() string { return l.sandboxer }

// Running says whether the sandbox takes containers.
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
func (l *Live) Dir() string { return l.box.dir }

// Agent is Sandbox.Agent.
func (l *Live) Agent(ctx context.Context) (*task.Client, error) {
	s, err := l.sandbox()
	if err != nil {
		return nil, err
	}
	return attempt(ctx, l.box.id, "reach agent", func() (*task.Client, error) { return s.Agent(ctx) })
}

// Streams says whether the sandbox is a Streamer.
func (l *Live) Streams() bool {
	_, s := l.box.current()
	_, ok := s.(Streamer)
	return ok
}

// Stream is Streamer.Stream.
func (l *Live) Stream(ctx context.Context) (net.Conn, error) {
	s, err := l.sandbox()
	if err != nil {
		return nil, err
	}
	streamer, ok := s.(Streamer)
	if !ok {
		return nil, fmt.Errorf("sandbox %s has no streams: %w", l.box.id, errdefs.ErrNotImplemented)
	}
	return attempt(ctx, l.box.id, "connect to streams", func() (net.Conn, error) { return streamer.Stream(ctx) })
}

// Kill is Killer.Kill. It is errdefs.ErrNotImplemented where the backend has none.
func (l *Live) Kill(ctx context.Context) error {
	s, err := l.sandbox()
	if err != nil {
		return err
	}
	killer, ok := s.(Killer)
	if !ok {
		return fmt.Errorf("kill sandbox %s: %w", l.box.id, errdefs.ErrNotImplemented)
	}
	return try(ctx, l.box.id, "kill", killer.Kill)
}

// Prepare is Sandbox.Prepare. It is errdefs.ErrFailedPrecondition for a sandbox
// that does not run.
func (l *Live) Prepare(ctx context.Context, container *Container) (Bundle, error) {
	state, s := l.box.current()
	if state != Running {
		return Bundle{}, fmt.Errorf("prepare container %s: sandbox %s is %s: %w", container.ID, l.box.id, state, errdefs.ErrFailedPrecondition)
	}
	return attempt(ctx, l.box.id, "prepare container", func() (Bundle, error) { return s.Prepare(ctx, container) })
}

// Release is Sandbox.Release.
func (l *Live) Release(ctx context.Context, id string) error {
	s, err := l.sandbox()
	if err != nil {
		return err
	}
	return try(ctx, l.box.id, "release container", func(ctx context.Context) error { return s.Release(ctx, id) })
}

func (l *Live) sandbox() (Sandbox, error) {
	state, s := l.box.current()
	if s == nil {
		return nil, fmt.Errorf("sandbox %s is %s: %w", l.box.id, state, errdefs.ErrUnavailable)
	}
	return s, nil
}
