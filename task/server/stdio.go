package server

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/task/stdio"
	"github.com/containerd-kuasar/containerd-kuasar/task/wire"
)

var fpCloseIO = failpoint.New("server/closeio/close")

// ResizePty sets the size of a process's terminal.
func (s *Server) ResizePty(ctx context.Context, r *wire.ResizePtyRequest) (*emptypb.Empty, error) {
	p, err := s.process(ctx, r.Id, r.ExecId)
	if err != nil {
		return nil, err
	}
	sio, err := p.stdio()
	if err != nil {
		return nil, err
	}
	if err := sio.Resize(r.Width, r.Height); err != nil {
		return nil, fmt.Errorf("resize terminal of %s: %w", p, err)
	}
	return &emptypb.Empty{}, nil
}

// CloseIO ends a process's stdin after what is in its FIFO.
func (s *Server) CloseIO(ctx context.Context, r *wire.CloseIORequest) (*emptypb.Empty, error) {
	p, err := s.process(ctx, r.Id, r.ExecId)
	if err != nil {
		return nil, err
	}
	if !r.Stdin {
		return &emptypb.Empty{}, nil
	}
	if err := p.take(ctx); err != nil {
		return nil, err
	}
	defer p.pass()
	closed := func(v *saved) { v.StdinClosed = true }
	if v := p.get(); v.Status != stopped && v.Status != gone {
		if err := p.write(closed); err != nil {
			return nil, err
		}
	}
	p.set(closed)
	fpCloseIO.Hit()
	sio, err := p.stdio()
	if errdefs.IsFailedPrecondition(err) { // it opens at the start, without stdin
		return &emptypb.Empty{}, nil
	}
	if err := sio.CloseStdin(); err != nil {
		return nil, fmt.Errorf("close stdin of %s: %w", p, err)
	}
	return &emptypb.Empty{}, nil
}

func (p *process) stdio() (stdio.IO, error) {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	if p.io == nil {
		return nil, fmt.Errorf("%s has no stdio open: %w", p, errdefs.ErrFailedPrecondition)
	}
	return p.io, nil
}
