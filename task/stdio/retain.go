package stdio

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// retainOutput gives the process a FIFO of its own, a spool, and relays it to
// the FIFO n, so that the newest output is kept (see package relay).
func (p *process) retainOutput(ctx context.Context, i int, n node) error {
	w, err := writer(ctx, n)
	if err != nil {
		return err
	}
	defer unix.Close(w)
	s, err := makeSpool(n.name)
	if err != nil {
		return err
	}
	defer s.close()
	p.ends[i].spool = s.name
	if p.terminal {
		if p.sink, err = s.open(unix.O_RDWR | unix.O_NONBLOCK); err != nil {
			return err
		}
		return p.relay(i, s, n)
	}
	end, err := s.open(unix.O_RDWR)
	if err := p.give(i, end, s.name, err); err != nil {
		return err
	}
	return p.relay(i, s, n)
}

// reretainOutput takes up the relay of a former agent.
func (p *process) reretainOutput(i int, n node) error {
	s, err := lookup(Spool(n.name))
	if err != nil {
		return err
	}
	defer s.close()
	p.ends[i].spool = s.name
	if p.terminal {
		if p.sink, err = s.open(unix.O_RDWR | unix.O_NONBLOCK); err != nil {
			return err
		}
	}
	return p.relay(i, s, n)
}

// spoolSize is the capacity of a spool in bytes: the process writes on while
// the relay has its turn.
const spoolSize = 256 << 10

func (p *process) relay(i int, from, to node) error {
	source, err := from.open(unix.O_RDONLY | unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	// Where pipes may not grow, the usual size does.
	_, _ = unix.FcntlInt(uintptr(source), unix.F_SETPIPE_SZ, spoolSize)
	sink, err := to.open(unix.O_RDWR | unix.O_NONBLOCK)
	if err != nil {
		unix.Close(source)
		return err
	}
	p.ends[i].stream, err = p.host.relay.Add(os.NewFile(uintptr(source), from.name), os.NewFile(uintptr(sink), to.name))
	return err
}

// Retained returns the newest output of a process whose Config said Retain,
// also after its end, until Close. stderr is nil with a terminal.
func (p *process) Retained() (*api.RetainedResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := [3]*api.Output{}
	for i, e := range p.ends {
		if e.stream == nil {
			continue
		}
		// Nobody reads the FIFO of an ended process to its end: CRI, when it
		// starts, opens and closes it.
		retained := e.stream.Retained
		if p.exited {
			retained = e.stream.Finish
		}
		data, complete, err := retained()
		if err != nil {
			return nil, err
		}
		out[i] = &api.Output{Data: data, Complete: complete}
	}
	if out[1] == nil && out[2] == nil {
		return nil, fmt.Errorf("output is not retained: %w", errdefs.ErrFailedPrecondition)
	}
	return &api.RetainedResponse{Stdout: out[1], Stderr: out[2], Ended: p.exited}, nil
}
