package server

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/task/wire"
)

var (
	fpDelete  = failpoint.New("server/delete/runtime")
	fpDeleted = failpoint.New("server/delete/files")
)

// Delete removes a container with all that is known of it, or an exec. A
// container that was never started is killed first. If it fails it can be
// called again.
func (s *Server) Delete(ctx context.Context, r *wire.DeleteRequest) (*wire.DeleteResponse, error) {
	p, err := s.process(ctx, r.Id, r.ExecId)
	if err != nil {
		return nil, err
	}
	if p.exec == "" {
		err = s.deleteContainer(ctx, p)
	} else {
		err = s.deleteExec(ctx, p)
	}
	if err != nil {
		return nil, err
	}
	v := p.get()
	resp := &wire.DeleteResponse{Pid: uint32(v.Pid)}
	if v.Exit != nil {
		resp.ExitStatus, resp.ExitedAt = v.Exit.Status, timestamppb.New(v.Exit.At)
	}
	return resp, nil
}

func (s *Server) deleteExec(ctx context.Context, p *process) error {
	if err := p.take(ctx); err != nil {
		return err
	}
	defer p.pass()
	if err := p.check(opDelete); err != nil {
		return err
	}
	if err := Join(p.closeIO(), remove(p.path())); err != nil {
		return fmt.Errorf("delete %s: %w", p, err)
	}
	p.c.forget(p)
	return p.bury()
}

// forget makes an exec unknown.
func (c *container) forget(p *process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.execs, p.exec)
}

// bury ends the waits for a process that never exited.
func (p *process) bury() error {
	fresh := p.get().Status == created
	if err := p.become(gone); err != nil {
		return err
	}
	if fresh {
		close(p.done)
	}
	return nil
}

func (s *Server) deleteContainer(ctx context.Context, p *process) error {
	if err := s.end(ctx, p); err != nil {
		return err
	}
	if err := p.take(ctx); err != nil {
		return err
	}
	defer p.pass()
	if err := p.check(opDelete); err != nil {
		return err
	}
	c := p.c
	execs := c.close()
	// What is removed is found again by a second Delete until all is.
	fpDelete.Hit()
	end := s.cfg.Reaper.Begin() // of hooks
	err := c.runtime.Delete(ctx, c.ref())
	end()
	if err != nil {
		return err
	}
	s.cfg.OOM.Remove(c.namespace + "/" + c.id)
	for _, e := range execs {
		err = Join(err, e.closeIO())
	}
	fpDeleted.Hit()
	if err = Join(err, p.closeIO(), os.RemoveAll(c.dir)); err != nil {
		return fmt.Errorf("delete container %s: %w", c.id, err)
	}
	s.drop(c.key)
	for _, e := range execs {
		err = Join(err, e.bury())
	}
	return Join(err, p.bury())
}

// end kills a container that was created and not started, and waits for it. One
// that has exited, but whose exit is not recorded yet, it waits for as well:
// clients may have seen the exit before us.
func (s *Server) end(ctx context.Context, p *process) error {
	if err := p.take(ctx); err != nil { // so that it is not started or closed meanwhile
		return err
	}
	p.c.mu.Lock()
	fd, st, dying := p.fd, p.saved.Status, p.c.dying
	p.c.mu.Unlock()
	var err error
	if st == created && fd != nil {
		dying = true
		err = pidfd.Signal(fd, unix.SIGKILL)
	} else if fd != nil && !dying {
		running, perr := pidfd.Running(fd)
		dying = perr == nil && !running
	}
	p.pass()
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("kill container %s: %w", p.c.id, err)
	}
	if !dying {
		return nil
	}
	return p.await(ctx)
}

// await blocks until the process exited or was deleted.
func (p *process) await(ctx context.Context) error {
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for %s: %w", p, context.Cause(ctx))
	}
}

// close takes no more execs and returns those that are left: exited, or never
// started.
func (c *container) close() []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dying = true
	var list []*process
	for _, e := range c.execs {
		list = append(list, e)
	}
	return list
}
