// Package wasm runs WebAssembly modules as containers: each in a process of its
// own, with a cgroup, in a cell (see package cell) and in its pod's network
// namespace.
//
// Nothing is kept in memory about a container. Its runner (see package runner)
// has loaded the module when Create returns, and waits at a FIFO in the
// container's directory; so any later worker can let it go on.
package wasm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/task/group"
	"github.com/containerd-kuasar/containerd-kuasar/task/server"
	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/cache"
)

var (
	fpGate   = failpoint.New("wasm/start/gate")
	fpOpened = failpoint.New("wasm/start/opened")
)

// Config of a Runtime.
type Config struct {
	// Begin keeps children that are waited for here from the worker's own
	// reaping until its end is called.
	Begin func() (end func())

	// Dir is private to the Runtime: its copy of the program is there.
	Dir string

	// Version of the program.
	Version string
}

// Runtime implements server.Runtime, and of the optional interfaces all but
// server.Checkpointer.
type Runtime struct {
	cfg   Config
	self  func() (string, error) // path of the program that runs wazero
	place func() (string, error) // path of the directory of cells

	mu     sync.Mutex
	caches map[string]*cache.Cache // by directory

	compilers chan struct{} // has room for those that run at a time
}

var (
	_ server.Runtime = (*Runtime)(nil)
	_ server.Pauser  = (*Runtime)(nil)
	_ server.Updater = (*Runtime)(nil)
	_ server.Grouper = (*Runtime)(nil)
)

// New makes a Runtime.
func New(cfg Config) *Runtime {
	return &Runtime{
		cfg:       cfg,
		self:      once(func() (string, error) { return install(cfg.Dir) }),
		place:     once(func() (string, error) { return place(cfg.Dir) }),
		caches:    map[string]*cache.Cache{},
		compilers: make(chan struct{}, compilers),
	}
}

// once is sync.OnceValues, but tries again after an error: a disk may be full for
// a while.
func once(do func() (string, error)) func() (string, error) {
	var mu sync.Mutex
	var path string
	return func() (string, error) {
		mu.Lock()
		defer mu.Unlock()
		if path != "" {
			return path, nil
		}
		made, err := do()
		if err != nil {
			return "", err
		}
		path = made
		return path, nil
	}
}

func gate(ref server.Ref) string { return filepath.Join(ref.Dir, "gate") }

// Start implements server.Runtime.
func (r *Runtime) Start(_ context.Context, ref server.Ref, process *os.File) error {
	path := gate(ref)
	fpGate.Hit()
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case err == unix.ENOENT:
		return nil // it was let go on before
	case err == unix.ENXIO:
		running, err := pidfd.Running(process)
		if err == nil && !running {
			err = fmt.Errorf("its process died before the module ran: %w", errdefs.ErrFailedPrecondition)
		}
		if err != nil {
			return fmt.Errorf("start container %s: %w", ref.ID, err)
		}
	case err != nil:
		return fmt.Errorf("start container %s: %w", ref.ID, err)
	default:
		_, err = unix.Write(fd, []byte{0})
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("start container %s: %w", ref.ID, err)
		}
	}
	fpOpened.Hit()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("start container %s: %w", ref.ID, err)
	}
	return nil
}

// Cgroups implements server.Grouper.
func (r *Runtime) Cgroups(_ context.Context, ref server.Ref) (map[string]string, error) {
	g, err := load(ref)
	return g.Controllers(), err
}

// Pids implements server.Runtime.
func (r *Runtime) Pids(_ context.Context, ref server.Ref) ([]int, error) {
	g, err := load(ref)
	if err != nil {
		return nil, err
	}
	pids, err := g.Pids()
	if err != nil {
		return nil, fmt.Errorf("processes of container %s: %w", ref.ID, err)
	}
	return pids, nil
}

// Signal implements server.Runtime. A module has no handlers: every signal
// that would end a program ends it.
func (r *Runtime) Signal(_ context.Context, ref server.Ref, sig unix.Signal) error {
	g, err := load(ref)
	if err != nil {
		return err
	}
	if sig == unix.SIGKILL {
		err = g.Kill()
	} else {
		err = g.Signal(sig)
	}
	if err != nil {
		return fmt.Errorf("signal container %s: %w", ref.ID, err)
	}
	return nil
}

// Pause implements server.Pauser.
func (r *Runtime) Pause(_ context.Context, ref server.Ref) error {
	return r.freeze(ref, cgroups.Frozen)
}

// Resume implements server.Pauser.
func (r *Runtime) Resume(_ context.Context, ref server.Ref) error {
	return r.freeze(ref, cgroups.Thawed)
}

func (r *Runtime) freeze(ref server.Ref, to cgroups.FreezerState) error {
	m, err := manage(ref)
	if err != nil {
		return err
	}
	if err := m.Freeze(to); err != nil {
		return fmt.Errorf("make container %s %s: %w", ref.ID, to, err)
	}
	return nil
}

// Paused implements server.Pauser.
func (r *Runtime) Paused(_ context.Context, ref server.Ref) (bool, error) {
	m, err := manage(ref)
	if err != nil {
		return false, err
	}
	state, err := m.GetFreezerState()
	if err != nil {
		return false, fmt.Errorf("state of container %s: %w", ref.ID, err)
	}
	return state == cgroups.Frozen, nil
}

// Update implements server.Updater. The limit of a running module's own memory
// stays what it was; that of its process changes.
func (r *Runtime) Update(_ context.Context, ref server.Ref, res *specs.LinuxResources) error {
	g, err := load(ref)
	if err != nil {
		return err
	}
	m, err := g.Manager()
	if err != nil {
		return fmt.Errorf("update container %s: %w", ref.ID, err)
	}
	merged := group.Merge(*g.Config.Resources, res)
	if err := m.Set(merged); err != nil {
		return fmt.Errorf("update container %s: %w", ref.ID, err)
	}
	g.Config.Resources = merged
	return g.Save(ref.Dir)
}

// Delete implements server.Runtime. The server removes ref.Dir.
func (r *Runtime) Delete(_ context.Context, ref server.Ref) error {
	if err := group.Destroy(ref.Dir); err != nil {
		return fmt.Errorf("delete container %s: %w", ref.ID, err)
	}
	return nil
}

func load(ref server.Ref) (group.Group, error) {
	g, err := group.Load(ref.Dir)
	if err != nil {
		return g, fmt.Errorf("cgroup of container %s: %w", ref.ID, err)
	}
	if g.Config == nil {
		return g, fmt.Errorf("cgroup of container %s: its record is empty: %w", ref.ID, errdefs.ErrDataLoss)
	}
	g.Config.Resources.SkipDevices = true // which no record has; see plan
	return g, nil
}

func manage(ref server.Ref) (cgroups.Manager, error) {
	g, err := load(ref)
	if err != nil {
		return nil, err
	}
	m, err := g.Manager()
	if err != nil {
		return nil, fmt.Errorf("cgroup of container %s: %w", ref.ID, err)
	}
	return m, nil
}
