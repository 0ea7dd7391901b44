package stdio

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"
)

// reopen takes up what a former agent opened. What has gone in the meantime
// has no reader any more.
func (p *process) reopen(ctx context.Context, cfg Config) error {
	stdin, output := p.reopenStdin, p.reopenOutput
	if p.remote { // nothing of it is open
		p.late = true
		stdin, output = p.openStdin, p.openOutput
	}
	var errs []error
	if !cfg.StdinClosed {
		errs = append(errs, stdin(cfg))
	}
	errs = append(errs, output(ctx, cfg, 1, cfg.Stdout))
	if !p.terminal && cfg.Stderr != cfg.Stdout {
		errs = append(errs, output(ctx, cfg, 2, cfg.Stderr))
	}
	for i, err := range errs {
		if errdefs.IsNotFound(err) || errors.Is(err, unix.ENXIO) {
			errs[i] = nil
		}
	}
	return errors.Join(errs...)
}

func (p *process) reopenStdin(cfg Config) error {
	t, err := parse(cfg.Stdin)
	if err != nil || t.kind != byPath {
		return err
	}
	n, err := lookup(t.path)
	if err != nil {
		return err
	}
	defer n.close()
	if n.mode != unix.S_IFIFO {
		return nil
	}
	if p.terminal {
		p.source, p.stdin, err = inputEnds(n, unix.O_NONBLOCK)
		return err
	}
	p.stdin, err = n.open(unix.O_WRONLY | unix.O_NONBLOCK)
	return err
}

func (p *process) reopenOutput(ctx context.Context, cfg Config, i int, name string) error {
	t, err := parse(name)
	switch {
	case err != nil || t.kind == nowhere:
		return err
	case t.kind == program && p.terminal: // the former agent's pipe ended with it
		return p.openProgram(ctx, cfg, i, t)
	case t.kind == program: // it lives on, with the process's end of the pipe
		return nil
	}
	n, err := lookup(t.path)
	if err != nil {
		return err
	}
	defer n.close()
	switch {
	case n.mode == unix.S_IFREG:
		return p.reopenLog(i, t.path)
	case n.mode != unix.S_IFIFO:
		return nil
	case cfg.Retain:
		return p.reretainOutput(i, n)
	case p.terminal:
		p.sink, err = n.open(unix.O_RDWR | unix.O_NONBLOCK)
		return err
	}
	p.ends[i].reader, err = n.open(unix.O_RDONLY | unix.O_NONBLOCK)
	return err
}

func (p *process) reopenLog(i int, name string) error {
	log, err := appendTo(name, false)
	if err != nil {
		return err
	}
	if p.terminal {
		p.sink = log
		return nil
	}
	n, err := lookup(Spool(name))
	if err != nil {
		unix.Close(log)
		return err
	}
	defer n.close()
	p.ends[i].spool = n.name
	return p.copyLog(i, n, log)
}
