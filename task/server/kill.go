package server

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/task/wire"
)

// maxSignal is SIGRTMAX of signal(7).
const maxSignal = 64

// Kill sends a signal to a process, or with r.All to all of a container.
// SIGKILL for the first process ends them all, whatever pid namespace they
// live in, as with runc. To kill all of a container that has exited is no
// error: nothing is left of it.
func (s *Server) Kill(ctx context.Context, r *wire.KillRequest) (*emptypb.Empty, error) {
	p, err := s.process(ctx, r.Id, r.ExecId)
	if err != nil {
		return nil, err
	}
	if r.Signal == 0 || r.Signal > maxSignal {
		return nil, fmt.Errorf("kill %s: signal %d is none of 1 to %d: %w", p, r.Signal, maxSignal, errdefs.ErrInvalidArgument)
	}
	if err := s.kill(ctx, p, unix.Signal(r.Signal), r.All); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

func (s *Server) kill(ctx context.Context, p *process, sig unix.Signal, all bool) error {
	c := p.c
	c.mu.Lock()
	v, fd := p.saved, p.fd
	c.mu.Unlock()

	if p.exec == "" && all && v.Status == stopped {
		return nil
	}
	if err := v.Status.check(opKill); err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	if v.Pid == 0 {
		return fmt.Errorf("%s: process not created: %w", p, errdefs.ErrFailedPrecondition)
	}
	if fd == nil {
		return finished(p)
	}
	if p.exec == "" && (all || sig == unix.SIGKILL && (v.SharedPID || v.Status != running)) {
		if err := c.runtime.Signal(ctx, c.ref(), sig); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		return nil
	}
	// fd is closed by now if its exit is being handled.
	err := pidfd.Signal(fd, sig)
	if errdefs.IsNotFound(err) || errors.Is(err, os.ErrClosed) {
		return finished(p)
	}
	if err != nil {
		return fmt.Errorf("kill %s: %w", p, err)
	}
	return nil
}

func finished(p *process) error {
	return fmt.Errorf("%s: %w", p, stopped.check(opKill))
}
