package server

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/containerd-kuasar/containerd-kuasar/internal/cgroup"
	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/task/phase"
	"github.com/containerd-kuasar/containerd-kuasar/task/wire"
)

var (
	fpStart   = failpoint.New("server/start/runtime")
	fpStarted = failpoint.New("server/start/started")
	fpExec    = failpoint.New("server/exec/record")
)

// Start runs the program of a container, or an exec. The process may have
// exited when it returns.
func (s *Server) Start(ctx context.Context, r *wire.StartRequest) (*wire.StartResponse, error) {
	p, err := s.process(ctx, r.Id, r.ExecId)
	if err != nil {
		return nil, err
	}
	if err := p.take(ctx); err != nil {
		return nil, err
	}
	defer p.pass()
	if err := p.check(opStart); err != nil {
		return nil, err
	}
	if p.exec == "" {
		err = s.startInit(ctx, p)
	} else {
		err = s.startExec(ctx, p)
	}
	if err != nil {
		return nil, err
	}
	return &wire.StartResponse{Pid: uint32(p.get().Pid)}, nil
}

func (s *Server) startInit(ctx context.Context, p *process) error {
	if err := p.write(func(v *saved) { v.Status = running }); err != nil {
		return err
	}
	fpStart.Hit()
	err := s.goOn(ctx, p)
	fpStarted.Hit()
	if err != nil {
		// Its exit, if that is the reason, is recorded next.
		return Join(err, p.write(func(*saved) {}))
	}
	return p.become(running)
}

func (s *Server) goOn(ctx context.Context, p *process) error {
	c := p.c
	if image := p.get().Checkpoint; image != "" {
		spec, err := readSpec(p.get().Bundle)
		if err != nil {
			return err
		}
		if err := s.launch(ctx, p, running, func(proc Process) (Started, error) {
			proc.Spec = spec
			return c.runtime.(Checkpointer).Restore(ctx, c.ref(), proc, image)
		}); err != nil {
			return err
		}
		s.watch(ctx, c)
		return nil
	}
	c.mu.Lock()
	fd := p.fd
	c.mu.Unlock()
	defer phase.Begin(ctx, "program")()
	return c.runtime.Start(ctx, c.ref(), fd)
}

// Exec makes a process known that Start starts.
func (s *Server) Exec(ctx context.Context, r *wire.ExecProcessRequest) (*emptypb.Empty, error) {
	cgroup.Warm(warm) // its Start comes next
	c, err := s.container(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	p, err := plan(c, r)
	if err != nil {
		return nil, fmt.Errorf("exec %q in container %s: %w", r.ExecId, c.id, err)
	}
	if err := p.take(ctx); err != nil { // before others find it
		return nil, err
	}
	defer p.pass()
	if err := c.add(p); err != nil {
		return nil, err
	}
	fpExec.Hit()
	if err := p.write(func(*saved) {}); err != nil {
		c.forget(p)
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

func plan(c *container, r *wire.ExecProcessRequest) (*process, error) {
	if !valid(r.ExecId) {
		return nil, fmt.Errorf("id: %w", errdefs.ErrInvalidArgument)
	}
	var spec specs.Process
	if err := json.Unmarshal(r.Spec.GetValue(), &spec); err != nil {
		return nil, fmt.Errorf("spec: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return newProcess(c, r.ExecId, saved{
		Status: created, Spec: r.Spec.Value,
		Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal,
	}), nil
}

// add makes an exec known.
func (c *container) add(p *process) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.canExec(); err != nil {
		return err
	}
	if c.execs[p.exec] != nil {
		return fmt.Errorf("%s: %w", p, errdefs.ErrAlreadyExists)
	}
	c.execs[p.exec] = p
	return nil
}

// canExec is called with c.mu held.
func (c *container) canExec() error {
	if c.dying {
		return fmt.Errorf("container %s: first process is not running: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	if err := c.init.saved.Status.check(opExec); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	return nil
}

// enter counts an exec among those that the first process's exit waits for,
// until leave.
func (c *container) enter() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.canExec(); err != nil {
		return err
	}
	c.busy++
	return nil
}

func (c *container) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy--
	c.quiet.Broadcast()
}

func (s *Server) startExec(ctx context.Context, p *process) error {
	cgroup.Warm(warm)
	c := p.c
	var spec specs.Process
	if err := json.Unmarshal(p.get().Spec, &spec); err != nil {
		return fmt.Errorf("spec of %s: %w: %w", p, err, errdefs.ErrInvalidArgument)
	}
	spec.Terminal = p.get().Terminal
	if err := c.enter(); err != nil {
		return err
	}
	err := p.write(func(v *saved) { v.Status, v.Spec = running, nil })
	if err == nil {
		err = s.launch(ctx, p, running, func(proc Process) (Started, error) {
			proc.Exec = &spec
			return c.runtime.Exec(ctx, c.ref(), proc)
		})
	}
	if err != nil {
		c.leave()
		return s.failed(p, err)
	}
	return p.become(running)
}

// failed ends an exec that never ran: its id is free after Delete.
func (s *Server) failed(p *process, err error) error {
	e := unknown("process was not started: " + err.Error())
	end := func(v *saved) { v.Status, v.Exit, v.Spec = stopped, &e, nil }
	werr := p.write(end)
	p.set(end)
	close(p.done)
	return Join(err, werr)
}

// unknown is the exit of a process that nobody can tell it of.
func unknown(why string) pidfd.Exit {
	return pidfd.Exit{Status: pidfd.UnknownStatus, At: now(), Unknown: why}
}
