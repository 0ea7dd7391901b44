// Package container runs Linux containers with libcontainer, in the calling
// process: no container runtime is executed, only the agent's own binary as
// the container's first process (see Init in package child).
//
// libcontainer keeps a container's state, spec included, in a file; its Go
// objects are as large. So none is kept: each call that needs one loads it,
// and the calls that are frequent (start, signal, pids, stats) do without.
package container

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/task/group"
	"github.com/containerd-kuasar/containerd-kuasar/task/server"
)

// Runtime implements server.Runtime and all that may come with it.
type Runtime struct{ holder server.Holder }

var (
	_ server.Runtime      = (*Runtime)(nil)
	_ server.Pauser       = (*Runtime)(nil)
	_ server.Updater      = (*Runtime)(nil)
	_ server.Grouper      = (*Runtime)(nil)
	_ server.Checkpointer = (*Runtime)(nil)
)

// New needs root, and a main function that calls child.Init first of all. It
// sets GOMAXPROCS in the environment to 1 for the processes that libcontainer
// executes, to which it hands that on: they have one thing to do, and a
// scheduler for more costs a quarter of their time. The caller's own scheduler
// has started with what there was.
func New(holder server.Holder) *Runtime {
	_ = os.Setenv("GOMAXPROCS", "1") // fails for impossible names only
	return &Runtime{holder: holder}
}

// state is the directory that libcontainer makes for the container.
func state(ref server.Ref) string { return filepath.Join(ref.Dir, ref.ID) }

func load(ref server.Ref) (*libcontainer.Container, error) {
	c, err := libcontainer.Load(ref.Dir, ref.ID)
	if err != nil {
		return nil, fmt.Errorf("load container %s: %w", ref.ID, class(err))
	}
	return c, nil
}

// Pause implements server.Pauser.
func (r *Runtime) Pause(_ context.Context, ref server.Ref) error {
	c, err := load(ref)
	if err != nil {
		return err
	}
	if err := c.Pause(); err != nil {
		return fmt.Errorf("pause container %s: %w", ref.ID, class(err))
	}
	return nil
}

// Resume implements server.Pauser.
func (r *Runtime) Resume(_ context.Context, ref server.Ref) error {
	c, err := load(ref)
	if err != nil {
		return err
	}
	if err := c.Resume(); err != nil {
		return fmt.Errorf("resume container %s: %w", ref.ID, class(err))
	}
	return nil
}

// Paused implements server.Pauser.
func (r *Runtime) Paused(_ context.Context, ref server.Ref) (bool, error) {
	c, err := load(ref)
	if err != nil {
		return false, err
	}
	s, err := c.Status()
	if err != nil {
		return false, fmt.Errorf("state of container %s: %w", ref.ID, class(err))
	}
	return s == libcontainer.Paused, nil
}

// Signal implements server.Runtime.
func (r *Runtime) Signal(_ context.Context, ref server.Ref, sig unix.Signal) error {
	if sig == unix.SIGKILL {
		return r.kill(ref)
	}
	g, err := group.Load(ref.Dir)
	if err == nil {
		err = g.Signal(sig)
	}
	if err != nil {
		return fmt.Errorf("signal container %s: %w", ref.ID, err)
	}
	return nil
}

// kill leaves it to libcontainer, which freezes what could fork on, or uses
// cgroup.kill, and thaws what is paused.
func (r *Runtime) kill(ref server.Ref) error {
	c, err := load(ref)
	if err != nil {
		return err
	}
	if err := c.Signal(unix.SIGKILL); err != nil {
		return fmt.Errorf("kill container %s: %w", ref.ID, class(err))
	}
	return nil
}

// Delete implements server.Runtime.
func (r *Runtime) Delete(_ context.Context, ref server.Ref) error {
	c, err := libcontainer.Load(ref.Dir, ref.ID)
	if err == nil {
		if err := c.Destroy(); err != nil {
			return fmt.Errorf("delete container %s: %w", ref.ID, class(err))
		}
		return forget(ref)
	}
	// Create died before libcontainer wrote its state, or a former Delete
	// after it removed it: the cgroup may be left.
	if err := group.Destroy(ref.Dir); err != nil {
		return fmt.Errorf("delete container %s: %w", ref.ID, err)
	}
	return forget(ref)
}

func forget(ref server.Ref) error {
	if err := os.RemoveAll(state(ref)); err != nil {
		return fmt.Errorf("delete container %s: %w", ref.ID, err)
	}
	if err := group.Remove(ref.Dir); err != nil {
		return fmt.Errorf("delete container %s: %w", ref.ID, err)
	}
	return nil
}
