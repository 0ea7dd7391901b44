package server

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/task/oom"
)

var (
	fpExit = failpoint.New("server/exit/record")
	fpTell = failpoint.New("server/exit/tell")
)

// drain is how long the last output of a terminal may take to get into a full
// FIFO before the exit is told; containerd's shim waits as long (process/init.go).
const drain = 10 * time.Second

// killed is the exit status of a process that SIGKILL ended.
const killed = 128 + uint32(unix.SIGKILL)

func now() time.Time { return time.Now() }

// exited handles one process's exit on a goroutine of its own.
func (s *Server) exited(p *process, e pidfd.Exit) {
	ctx := context.Background()
	l := log.G(ctx).WithField("container", p.c.id).WithField("exec", p.exec)
	defer func() {
		if r := recover(); r != nil {
			l.Errorf("panic while handling exit: %v\n%s", r, debug.Stack())
		}
	}()
	if p.exec == "" {
		s.last(ctx, p.c)
	}
	if err := p.take(ctx); err != nil { // it waits
		l.WithError(err).Error("exit of process is not handled")
		return
	}
	defer p.pass()
	if p.get().Status == gone {
		return
	}
	if p.exec != "" {
		defer p.c.leave()
	}
	if err := s.finish(ctx, p, e); err != nil {
		l.WithError(err).Error("exit of process is told but not complete")
	}
}

// last makes the first process's exit the last one of the container.
func (s *Server) last(ctx context.Context, c *container) {
	c.mu.Lock()
	c.dying = true
	shared := c.init.saved.SharedPID
	c.mu.Unlock()
	if shared {
		if err := c.runtime.Signal(ctx, c.ref(), unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
			log.G(ctx).WithError(err).WithField("container", c.id).Error("processes of an exited container are left")
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.busy > 0 {
		c.quiet.Wait()
	}
}

// finish records and tells an exit once the output is where it belongs.
func (s *Server) finish(ctx context.Context, p *process, e pidfd.Exit) error {
	c := p.c
	c.mu.Lock()
	sio, fd, frozen := p.io, p.fd, p.saved.Status == paused
	p.fd = nil
	c.mu.Unlock()

	if frozen && p.exec == "" {
		s.thaw(ctx, c)
	}
	var err error
	if sio != nil {
		bounded, cancel := context.WithTimeout(ctx, drain)
		if err = sio.Exited(bounded); err != nil {
			err = fmt.Errorf("drain output of %s: %w", p, err)
		}
		cancel()
	}
	end := func(v *saved) { v.Status, v.Exit = stopped, &e }
	fpExit.Hit()
	err = Join(err, p.write(end))
	fpTell.Hit()
	s.release(p)
	err = Join(err, closeFile(fd))
	if p.exec == "" && e.Status == killed {
		s.lateOOM(ctx, c)
	}
	p.set(end)
	close(p.done)
	s.events.publish(exitEvent(p, e))
	return err
}

// thaw lets a container's cgroup be removed whose processes died frozen.
func (s *Server) thaw(ctx context.Context, c *container) {
	if err := c.runtime.(Pauser).Resume(ctx, c.ref()); err != nil {
		log.G(ctx).WithError(err).WithField("container", c.id).Warn("cannot resume exited container")
	}
}

func exitEvent(p *process, e pidfd.Exit) *api.Event {
	return &api.Event{
		Namespace: p.c.namespace, ContainerId: p.c.id,
		Event: &api.Event_Exit{Exit: &api.ProcessExit{
			ExecId: p.exec, Pid: uint32(p.get().Pid), Exit: apiExit(&e),
		}},
	}
}

func apiExit(e *pidfd.Exit) *api.Exit {
	return &api.Exit{Status: e.Status, ExitedAt: timestamppb.New(e.At), Unknown: e.Unknown}
}

// OOM tells that the kernel killed a process of the container with that id
// (namespace/id) at its memory limit. It does not block.
func (s *Server) OOM(id string) {
	ns, id := cut(id)
	s.mu.Lock()
	c := s.containers[key{ns, id}]
	s.mu.Unlock()
	if c != nil {
		s.tellOOM(c)
	}
}

func (s *Server) tellOOM(c *container) {
	c.mu.Lock()
	c.oom = true
	c.mu.Unlock()
	s.events.publish(&api.Event{
		Namespace: c.namespace, ContainerId: c.id,
		Event: &api.Event_Oom{Oom: &api.OutOfMemory{}},
	})
}

// lateOOM looks for a kill that the watcher did not yet report: clients look
// for the reason of an exit when they learn of it.
func (s *Server) lateOOM(ctx context.Context, c *container) {
	g, ok := c.runtime.(Grouper)
	c.mu.Lock()
	told := c.oom
	c.mu.Unlock()
	if !ok || told {
		return
	}
	paths, err := g.Cgroups(ctx, c.ref())
	if err != nil {
		return
	}
	if n, err := oom.Kills(paths); err == nil && n > 0 {
		s.tellOOM(c)
	}
}
