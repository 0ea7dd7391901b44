package stdio

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"
)

func (p *process) open(ctx context.Context, cfg Config) error {
	if err := p.openStdin(cfg); err != nil {
		return fmt.Errorf("open stdin: %w", err)
	}
	if err := p.openOutput(ctx, cfg, 1, cfg.Stdout); err != nil {
		return fmt.Errorf("open stdout: %w", err)
	}
	if cfg.Terminal || cfg.Remote && both(cfg) {
		return nil
	}
	if both(cfg) {
		if err := p.shareOutput(cfg.Stderr); err != nil {
			return fmt.Errorf("open stderr: %w", err)
		}
		return nil
	}
	if err := p.openOutput(ctx, cfg, 2, cfg.Stderr); err != nil {
		return fmt.Errorf("open stderr: %w", err)
	}
	return nil
}

// shareOutput makes stderr what stdout is.
func (p *process) shareOutput(name string) error {
	if l := p.ends[1].logger; l != nil {
		fd, err := take(&l.stderr)
		return p.give(2, fd, name, err)
	}
	fd, err := unix.FcntlInt(p.files[1].Fd(), unix.F_DUPFD_CLOEXEC, 0)
	return p.give(2, fd, name, err)
}

// openStdin leaves the process's end in files, or without one in source for
// the terminal.
func (p *process) openStdin(cfg Config) error {
	t, err := parse(cfg.Stdin)
	if err != nil {
		return err
	}
	switch t.kind {
	case nowhere:
		return p.openNull(0, os.O_RDONLY)
	case logFile, program:
		return fmt.Errorf("stdin %q: it can only be the path of a FIFO: %w", cfg.Stdin, errdefs.ErrInvalidArgument)
	}
	n, err := lookup(t.path)
	if err != nil {
		return err
	}
	defer n.close()
	if n.mode == unix.S_IFCHR && !p.terminal {
		fd, err := n.open(unix.O_RDONLY)
		return p.give(0, fd, n.name, err)
	}
	if n.mode != unix.S_IFIFO {
		return kindError(n, "FIFO")
	}
	if p.terminal {
		p.source, p.stdin, err = inputEnds(n, unix.O_NONBLOCK)
		return err
	}
	var end int
	end, p.stdin, err = inputEnds(n, 0)
	return p.give(0, end, n.name, err)
}

// openOutput leaves the process's end in files, or in sink for the terminal.
func (p *process) openOutput(ctx context.Context, cfg Config, i int, name string) error {
	t, err := parse(name)
	if err != nil {
		return err
	}
	switch t.kind {
	case nowhere:
		return p.openNull(i, os.O_WRONLY)
	case logFile:
		return p.openLog(i, t.path, true)
	case program:
		return p.openProgram(ctx, cfg, i, t)
	}
	n, err := lookup(t.path)
	if err != nil {
		return err
	}
	defer n.close()
	switch {
	case n.mode == unix.S_IFREG:
		return p.openLog(i, t.path, false)
	case n.mode == unix.S_IFCHR && !p.terminal:
		fd, err := n.open(unix.O_WRONLY)
		return p.give(i, fd, n.name, err)
	case n.mode != unix.S_IFIFO:
		return kindError(n, "FIFO")
	case cfg.Retain:
		return p.retainOutput(ctx, i, n)
	}
	if !p.late {
		// Without it the reader could see an end before the process's is open.
		w, err := writer(ctx, n)
		if err != nil {
			return err
		}
		defer unix.Close(w)
	}
	if p.terminal {
		p.sink, p.ends[i].reader, err = outputEnds(n, unix.O_NONBLOCK)
		return err
	}
	var end int
	end, p.ends[i].reader, err = outputEnds(n, 0)
	return p.give(i, end, n.name, err)
}

func (p *process) openNull(i, flags int) error {
	if p.terminal || p.remote {
		return nil
	}
	f, err := os.OpenFile(os.DevNull, flags, 0)
	p.files[i] = f
	return err
}

// openLog copies to a file: from the terminal, or from a FIFO that the process
// gets.
func (p *process) openLog(i int, name string, create bool) error {
	log, err := appendTo(name, create)
	if err != nil {
		return err
	}
	if p.terminal {
		p.sink = log
		return nil
	}
	n, err := makeSpool(name)
	if err != nil {
		unix.Close(log)
		return err
	}
	defer n.close()
	p.ends[i].spool = n.name
	fd, err := n.open(unix.O_RDWR)
	if err := p.give(i, fd, n.name, err); err != nil {
		unix.Close(log)
		return err
	}
	return p.copyLog(i, n, log)
}

// copyLog takes over log.
func (p *process) copyLog(i int, n node, log int) error {
	src, err := n.open(unix.O_RDONLY | unix.O_NONBLOCK)
	if err != nil {
		unix.Close(log)
		return err
	}
	out := pump{src: src, dst: log, limit: bufferSize}
	if p.ends[i].transfer, err = p.host.loop.transfer(out, pump{src: -1}); err != nil {
		unix.Close(src)
		unix.Close(log)
	}
	return err
}

func (p *process) openProgram(ctx context.Context, cfg Config, i int, t target) error {
	l, err := p.host.startLogger(ctx, cfg, t)
	if err != nil {
		return err
	}
	p.ends[i].logger = l
	end := &l.stdout
	if i == 2 {
		end = &l.stderr
	}
	fd, err := take(end)
	if !both(cfg) {
		l.untaken()
	}
	if p.terminal && err == nil {
		p.sink = fd
		return unix.SetNonblock(fd, true)
	}
	return p.give(i, fd, t.path, err)
}

// both says that stdout and stderr go the same way.
func both(cfg Config) bool { return !cfg.Terminal && cfg.Stderr == cfg.Stdout && cfg.Stdout != "" }

// give makes fd what the process gets.
func (p *process) give(i, fd int, name string, err error) error {
	if err != nil {
		return err
	}
	if p.remote {
		err = unix.SetNonblock(fd, true) // package os then waits for it
	}
	p.files[i] = os.NewFile(uintptr(fd), name)
	return err
}
