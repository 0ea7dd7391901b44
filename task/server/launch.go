package server

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/task/hold"
	"github.com/containerd-kuasar/containerd-kuasar/task/phase"
	"github.com/containerd-kuasar/containerd-kuasar/task/stdio"
)

var (
	fpForked = failpoint.New("server/launch/forked")
	fpHeld   = failpoint.New("server/launch/held")
	fpKnown  = failpoint.New("server/launch/known")
)

// launch starts p with its stdio and follows it, and records what it is then.
// The caller has p's turn; an exit is handled when it passes on. On error p's
// process is dead.
func (s *Server) launch(ctx context.Context, p *process, as status, start func(Process) (Started, error)) (err error) {
	opened := phase.Begin(ctx, "stdio")
	sio, err := s.cfg.Stdio.Open(ctx, p.config())
	opened()
	if err != nil {
		return fmt.Errorf("open stdio of %s: %w", p, err)
	}
	defer func() {
		if err != nil {
			err = Join(err, sio.Close())
		}
	}()
	proc := Process{Terminal: p.get().Terminal}
	if !proc.Terminal {
		proc.Stdin, proc.Stdout, proc.Stderr = sio.Files()
	}

	end := s.cfg.Reaper.Begin()
	defer end()
	started := phase.Begin(ctx, "process")
	st, err := start(proc)
	started()
	if err != nil {
		return err
	}
	fpForked.Hit()
	if st.Pid <= 1 { // to signal such a number would reach every process
		return Join(fmt.Errorf("%s has pid %d: %w", p, st.Pid, errdefs.ErrInternal), closeFile(st.Master))
	}
	fd, err := pidfd.Open(st.Pid, 0) // nobody reaps it before end
	if err != nil {
		return Join(err, unix.Kill(st.Pid, unix.SIGKILL), closeFile(st.Master))
	}
	if err := s.adopt(ctx, p, as, fd, st, sio); err != nil {
		_ = pidfd.Signal(fd, unix.SIGKILL) // and the Reaper reaps it
		s.release(p)
		return Join(err, fd.Close())
	}
	return nil
}

// adopt makes everything that outlives this call know the process.
func (s *Server) adopt(ctx context.Context, p *process, as status, fd *os.File, st Started, sio stdio.IO) error {
	defer phase.Begin(ctx, "adopt")()
	s.hold(ctx, p.key(hold.Pidfd), fd)
	if st.Master != nil {
		s.hold(ctx, p.key(hold.Pty), st.Master)
	}
	s.holdOutput(ctx, p)
	fpHeld.Hit()
	start, err := pidfd.StartTime(st.Pid)
	if err != nil {
		return Join(err, closeFile(st.Master))
	}
	know := func(v *saved) { v.Pid, v.Start, v.Spec = st.Pid, start, nil }
	if err := p.write(func(v *saved) { know(v); v.Status = as }); err != nil {
		return Join(err, closeFile(st.Master))
	}
	fpKnown.Hit()
	sio.Started()
	if st.Master != nil {
		if err := sio.Attach(st.Master); err != nil {
			return fmt.Errorf("attach to terminal of %s: %w", p, err)
		}
	}
	if p.get().StdinClosed {
		if err := sio.CloseStdin(); err != nil {
			return fmt.Errorf("close stdin of %s: %w", p, err)
		}
	}
	if err := s.cfg.Reaper.Follow(fd, func(e pidfd.Exit) { go s.exited(p, e) }); err != nil {
		return err
	}
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	know(&p.saved)
	p.io, p.fd = sio, fd
	return nil
}

// hold is for the time after this agent's death. The process is none the worse
// if that fails now.
func (s *Server) hold(ctx context.Context, key string, f *os.File) {
	if err := s.cfg.Holder.Hold(key, f); err != nil {
		log.G(ctx).WithError(err).WithField("key", key).Warn("cannot hold descriptor: it is lost if the agent dies")
	}
}

// outputs are the kinds of descriptors of FIFOs that this agent writes to, and
// of those that it reads from for it.
var outputs = [...]string{"stdout", "stderr", "spool", "stderr-spool"}

// relayed are the FIFOs that the agent alone writes to, because the process
// writes to something else: their readers would see an end when it dies. And
// the spools that the agent alone reads: what the process wrote last would be
// gone if it exits while no agent is there.
func (v *saved) relayed() (list [len(outputs)]string) {
	if v.Terminal || v.Retain {
		list[0] = v.Stdout
	}
	if v.Retain {
		list[2] = stdio.Spool(v.Stdout)
		if !v.Terminal {
			list[1], list[3] = v.Stderr, stdio.Spool(v.Stderr)
		}
	}
	return list
}

func (s *Server) holdOutput(ctx context.Context, p *process) {
	v := p.get()
	for i, path := range v.relayed() {
		if info, err := os.Stat(path); err != nil || info.Mode()&os.ModeNamedPipe == 0 {
			continue // an URI, or nothing
		}
		flags := os.O_RDWR
		if i >= 2 && !v.Terminal {
			flags = os.O_RDONLY // it ends with the process
		}
		f, err := os.OpenFile(path, flags|unix.O_NONBLOCK, 0)
		if err != nil {
			log.G(ctx).WithError(err).WithField("container", p.c.id).Warn("cannot hold output: some is lost if the agent dies")
			continue
		}
		s.hold(ctx, p.key(outputs[i]), f)
		f.Close()
	}
}

// release undoes hold.
func (s *Server) release(p *process) {
	for _, kind := range append(outputs[:], hold.Pidfd, hold.Pty) {
		s.cfg.Holder.Drop(p.key(kind))
	}
}

func closeFile(f *os.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}
