package tasks

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/task/stdio"
	"github.com/containerd-kuasar/containerd-kuasar/task/stream"
)

// drainTime bounds what a Delete waits for output of which clients do not wait
// for the end: that of which a program or nobody takes note.
const drainTime = 2 * time.Second

// newStreams makes the host's end of guests' stdio.
func newStreams() (*stream.Host, error) {
	reaper, err := pidfd.NewReaper()
	if err != nil {
		return nil, err
	}
	host, err := stdio.NewHost(reaper)
	if err != nil {
		return nil, errors.Join(err, reaper.Close())
	}
	return stream.NewHost(host), nil
}

// streams says whether the agent has no part in this host's files, so that
// processes' stdio are carried to it. It is one sandbox's alone then.
func (t *Task) streams() bool { return t.sandbox != nil && t.sandbox.Streams() }

func (p *process) config() stdio.Config {
	return stdio.Config{
		Namespace: p.task.key.namespace, Container: p.task.key.id, Exec: p.exec,
		Stdin: p.stdio.Stdin, Stdout: p.stdio.Stdout, Stderr: p.stdio.Stderr, Terminal: p.stdio.Terminal,
	}
}

// open opens the host's end of the stdio of a process that is about to be made,
// if its agent does not.
func (p *process) open(ctx context.Context) error {
	if !p.task.streams() {
		return nil
	}
	h, err := p.task.runtime.streams()
	if err != nil {
		return err
	}
	c, err := h.Open(ctx, p.config())
	if err != nil {
		return err
	}
	return p.carry(c)
}

// reopen takes up what a former daemon carried.
func (p *process) reopen(ctx context.Context) error {
	h, err := p.task.runtime.streams()
	if err != nil {
		return err
	}
	cfg := p.config()
	p.mu.Lock()
	cfg.StdinClosed = p.closed
	again := p.carrier != nil || p.fresh
	p.mu.Unlock()
	if again {
		return nil
	}
	c, err := h.Reopen(ctx, cfg)
	if err != nil {
		return err
	}
	if err := p.carry(c); err != nil {
		return err
	}
	p.attach()
	return nil
}

// carry keeps a process's carrier until letStreams.
func (p *process) carry(c *stream.Carrier) error {
	p.mu.Lock()
	taken := p.carrier != nil || p.buried
	if !taken {
		p.carrier = c
	}
	p.mu.Unlock()
	if taken {
		return errors.Join(errdefs.ErrAlreadyExists, c.Close())
	}
	return nil
}

func (p *process) carried() *stream.Carrier {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.carrier
}

// attach begins to copy: the agent has the process.
func (p *process) attach() {
	p.mu.Lock()
	c, at := p.carrier, p.logged
	p.mu.Unlock()
	if c == nil {
		return
	}
	c.Attach(p.task.sandbox, at)
	if p.task.isDone() {
		c.Exited()
	}
}

// expire has nobody wait without end for output of a container that has exited:
// a guest may tell of the one and not of the other.
func (t *Task) expire() {
	for _, p := range t.processes() {
		if c := p.carried(); c != nil {
			c.Exited()
		}
	}
}

// drain waits until the output of a process that has exited is delivered, as far
// as it is read.
func (p *process) drain(ctx context.Context) {
	c := p.carried()
	if c == nil || !p.isDone() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	if err := c.Drain(ctx); err != nil {
		log.G(ctx).WithField("id", p.task.key.id).Warn("output is removed that nobody has read")
	}
}

// letStreams ends the carrying of a process's stdio.
func (p *process) letStreams() {
	p.mu.Lock()
	c := p.carrier
	p.carrier = nil
	p.mu.Unlock()
	if c == nil {
		return
	}
	if err := c.Close(); err != nil {
		log.G(p.task.runtime.life).WithError(err).WithField("id", p.task.key.id).Warn("close stdio")
	}
}

// restream takes up the stdio of all processes of a task. Until then nobody has
// lost any: it waits in the guest.
func (t *Task) restream(ctx context.Context) {
	if !t.streams() || t.phase() != living {
		return
	}
	for _, p := range t.processes() {
		if err := p.reopen(ctx); err != nil {
			log.G(ctx).WithError(err).WithField("id", t.key.id).Warn("stdio is not restored")
		}
	}
}

// noteExec records the stdio of an exec whose agent is not asked for it later.
func (t *Task) noteExec(id string, io runtime.IO) error {
	if !t.streams() {
		return nil
	}
	return t.save(func(s *saved) {
		s.Execs = maps.Clone(s.Execs)
		if s.Execs == nil {
			s.Execs = map[string]runtime.IO{}
		}
		s.Execs[id] = io
	})
}

// execIO is the stdio of an exec that a former daemon made. A guest is not
// believed what it says of it: it could have the daemon open any file, and know
// of any number of them.
func (t *Task) execIO(id string, said runtime.IO) (io runtime.IO, known bool) {
	if !t.streams() {
		return said, true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	io, known = t.saved.Execs[id]
	return io, known
}
