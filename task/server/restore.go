package server

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
	"github.com/containerd-kuasar/containerd-kuasar/task/hold"
)

const (
	// execPrefix of the files of execs' records.
	execPrefix = "exec-"

	// finishStart is how long a first process gets to go on whose Start a
	// former agent died in. It waits for nothing but us.
	finishStart = 2 * time.Second
)

// Restore makes known what a former agent left: held are the descriptors it
// gave away, by hold.Key; Restore takes them over. Then calls are answered.
// What cannot be restored is left alone and logged. An error means that
// nothing could be read.
func (s *Server) Restore(ctx context.Context, held map[string]*os.File) error {
	if err := os.MkdirAll(s.cfg.Dir, 0o711); err != nil {
		return fmt.Errorf("restore containers: %w", err)
	}
	dirs, err := filepath.Glob(filepath.Join(s.cfg.Dir, "*", "*"))
	if err != nil {
		return fmt.Errorf("restore containers: %w", err)
	}
	for _, dir := range dirs {
		k := key{filepath.Base(filepath.Dir(dir)), filepath.Base(dir)}
		if err := s.restore(ctx, k, held); err != nil {
			s.quarantine(k, err)
			log.G(ctx).WithError(err).WithField("container", k.id).WithField("namespace", k.namespace).
				Error("container is not restored: nothing of it was touched")
		}
	}
	for name, f := range held {
		if s.quarantined[owner(name)] == nil { // or its terminals would hang up
			s.cfg.Holder.Drop(name)
		}
		err = Join(err, f.Close())
	}
	close(s.ready)
	return err
}

// quarantine keeps in mind a container that is not restored. Its processes may
// well run: whoever asks for it is told so, and not that it is gone.
func (s *Server) quarantine(k key, cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.quarantined[k] = fmt.Errorf("container %s is not restored: %v: %w", k.id, cause, errdefs.ErrUnavailable)
}

// restore handles one container. It deletes from held what it takes.
func (s *Server) restore(ctx context.Context, k key, held map[string]*os.File) error {
	c := newContainer(s.cfg.Dir, k, nil, saved{})
	same, err := record.Read(c.init.path(), &c.init.saved)
	if errdefs.IsNotFound(err) || err == nil && !same {
		// Nothing was made before the record, and nothing is left after it or
		// after a boot.
		return os.RemoveAll(c.dir)
	}
	if err != nil {
		return err
	}
	v := &c.init.saved
	if c.runtime, err = s.runtime(v.OptionsURL); err != nil {
		return err
	}
	if v.Pid == 0 && v.Checkpoint == "" || v.Pid == 0 && v.Status == running {
		return s.undo(ctx, c)
	}
	if err := s.restoreExecs(c); err != nil {
		return err
	}
	if err := s.open(ctx, c, held); err != nil {
		return err
	}
	// Exits wait until all of the container is restored.
	c.init.turn <- struct{}{}
	defer c.init.pass()
	for _, p := range c.execs {
		p.turn <- struct{}{}
		defer p.pass()
	}
	s.settle(k, c)
	switch {
	case v.Status == stopped:
		c.dying = true
		close(c.init.done)
	case v.Pid != 0:
		s.restoreInit(ctx, c, held)
	}
	for _, p := range c.execs {
		if p.saved.Status == running {
			s.follow(ctx, p, held)
		}
	}
	return nil
}

// open makes held complete with the pidfds of the container's processes that
// run. One that has ended is no error.
func (s *Server) open(ctx context.Context, c *container, held map[string]*os.File) error {
	running := []*process{c.init}
	for _, p := range c.execs {
		running = append(running, p)
	}
	for _, p := range running {
		name := p.key(hold.Pidfd)
		if v := &p.saved; v.Pid == 0 || v.Status == stopped || held[name] != nil {
			continue
		}
		fd, err := pidfd.Open(p.saved.Pid, p.saved.Start)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		s.hold(ctx, name, fd)
		held[name] = fd
	}
	return nil
}

// undo removes a container that its Create did not answer for.
func (s *Server) undo(ctx context.Context, c *container) error {
	end := s.cfg.Reaper.Begin() // of hooks
	defer end()
	if err := c.runtime.Delete(ctx, c.ref()); err != nil {
		return err
	}
	return os.RemoveAll(c.dir)
}

func (s *Server) restoreExecs(c *container) error {
	paths, err := filepath.Glob(filepath.Join(c.dir, execPrefix+"*.json"))
	if err != nil {
		return err
	}
	for _, path := range paths {
		id := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), execPrefix), ".json")
		p := newProcess(c, id, saved{})
		if _, err := record.Read(path, &p.saved); err != nil {
			return err
		}
		switch v := &p.saved; {
		case v.Status == running && v.Pid == 0:
			e := unknown("the agent died while it started the process")
			v.Status, v.Exit = stopped, &e
			fallthrough
		case v.Status == stopped:
			close(p.done)
		case v.Status == running:
			c.busy++
		}
		c.execs[id] = p
	}
	return nil
}

// restoreInit settles what the first process's record leaves open.
func (s *Server) restoreInit(ctx context.Context, c *container, held map[string]*os.File) {
	p := c.init
	l := log.G(ctx).WithField("container", c.id)
	s.watch(ctx, c)
	s.follow(ctx, p, held)
	if p.fd == nil {
		return // it is gone
	}
	switch p.saved.Status {
	case running:
		bounded, cancel := context.WithTimeout(ctx, finishStart)
		defer cancel()
		if err := c.runtime.Start(bounded, c.ref(), p.fd); err != nil {
			l.WithError(err).Warn("the start that a former agent died in may have failed")
		}
	case pausing, paused:
		is, err := c.runtime.(Pauser).Paused(ctx, c.ref())
		if err != nil {
			l.WithError(err).Warn("cannot tell whether container is paused")
		}
		p.set(func(v *saved) {
			if v.Status = running; is {
				v.Status = paused
			}
		})
	}
}

// follow takes up a process that runs, or that exited while no agent was there.
// Its exit is handled once the caller passes on the turn.
func (s *Server) follow(ctx context.Context, p *process, held map[string]*os.File) {
	l := log.G(ctx).WithField("container", p.c.id).WithField("exec", p.exec)
	for _, kind := range outputs { // they stay held, and are not needed here
		_ = closeFile(take(held, p.key(kind)))
	}
	sio, err := s.cfg.Stdio.Reopen(ctx, p.config(), take(held, p.key(hold.Pty)))
	if err != nil {
		l.WithError(err).Error("stdio of process is lost")
	} else {
		p.io = sio
	}
	fd := take(held, p.key(hold.Pidfd))
	if fd == nil {
		go s.exited(p, unknown("it ended while neither agent nor daemon followed it"))
		return
	}
	p.fd = fd
	if err := s.cfg.Reaper.Follow(fd, func(e pidfd.Exit) { go s.exited(p, e) }); err != nil {
		l.WithError(err).Error("process is not followed: its exit goes unnoticed")
	}
}

// owner is the container that a held descriptor belongs to.
func owner(name string) key {
	ns, rest, _ := strings.Cut(name, "/")
	id, _, _ := strings.Cut(rest, "/")
	return key{ns, id}
}

func take(held map[string]*os.File, name string) *os.File {
	f := held[name]
	delete(held, name)
	return f
}
