// Package group is a container's cgroup as its runtime finds it again: where
// it is, recorded before it is made, since that is all that is left of a
// container whose creation was cut short.
package group

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // lets managers set device rules
	"github.com/opencontainers/cgroups/manager"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
)

// Group is the record.
type Group struct {
	Paths  map[string]string `json:"paths"` // by controller, "" for all of v2
	Config *cgroups.Cgroup   `json:"config"`
}

func file(dir string) string { return filepath.Join(dir, "cgroup.json") }

// Save writes the record into a directory of the runtime's.
func (g Group) Save(dir string) error { return record.Write(file(dir), g) }

// Load reads it. It is errdefs.ErrNotFound before Save.
func Load(dir string) (Group, error) {
	var g Group
	_, err := record.Read(file(dir), &g)
	if err == nil && g.Config != nil && g.Config.Resources == nil {
		g.Config.Resources = &cgroups.Resources{} // managers want one
	}
	return g, err
}

// Remove removes the record.
func Remove(dir string) error { return os.RemoveAll(file(dir)) }

// Manager acts on the cgroup.
func (g Group) Manager() (cgroups.Manager, error) { return manager.NewWithPaths(g.Config, g.Paths) }

// Controllers are the cgroup's paths by controller.
func (g Group) Controllers() map[string]string {
	if !cgroups.IsCgroup2UnifiedMode() {
		delete(g.Paths, "") // of a hybrid host: it has no controllers
	}
	return g.Paths
}

// Pids are all processes in the cgroup and below it, the oldest first; there
// may be none.
func (g Group) Pids() ([]int, error) {
	dir, err := g.dir()
	if err != nil {
		return nil, err
	}
	pids, err := cgroups.GetAllPids(dir)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	// 0 stands for a process that cannot be seen from here. To signal it would
	// signal us.
	pids = slices.DeleteFunc(pids, func(pid int) bool { return pid <= 1 })
	slices.Sort(pids)
	return pids, err
}

// dir is where all processes are found. Every process is in all hierarchies of
// v1; we take one that has no other use for a container.
func (g Group) dir() (string, error) {
	for _, controller := range []string{"devices", "freezer", ""} {
		if dir, ok := g.Paths[controller]; ok {
			return dir, nil
		}
	}
	return "", fmt.Errorf("it has no cgroup: %w", errdefs.ErrNotFound)
}

// kill is another one in tests.
var kill = unix.Kill

// Signal sends sig to every process; the oldest last, since the exit of a
// container's first process may end the others. It is errdefs.ErrNotFound if
// there is none.
func (g Group) Signal(sig unix.Signal) error {
	pids, err := g.Pids()
	if err != nil {
		return err
	}
	if len(pids) == 0 {
		return fmt.Errorf("no process: %w", errdefs.ErrNotFound)
	}
	return send(pids, sig)
}

func send(pids []int, sig unix.Signal) error {
	for _, pid := range slices.Backward(pids) {
		// One that is gone by now is as good as signalled.
		if err := kill(pid, sig); err != nil && err != unix.ESRCH {
			return fmt.Errorf("process %d: %w", pid, err)
		}
	}
	return nil
}

// Kill ends every process, and those that they make meanwhile. It is
// errdefs.ErrNotFound if there is none.
func (g Group) Kill() error {
	pids, err := g.Pids()
	if err != nil {
		return err
	}
	if len(pids) == 0 {
		return fmt.Errorf("no process: %w", errdefs.ErrNotFound)
	}
	// The hierarchy of v2 that is beside those of v1 is entered last: it need
	// not have them all.
	if dir, err := g.dir(); err == nil && dir == g.Paths[""] {
		err := cgroups.WriteFile(dir, "cgroup.kill", "1")
		if !errors.Is(err, os.ErrNotExist) { // as before Linux 5.14
			return err
		}
	}
	m, err := g.Manager()
	if err != nil {
		return err
	}
	// What is frozen makes no others. On v1 it dies when it is thawed.
	frozen := m.Freeze(cgroups.Frozen)
	err = g.Signal(unix.SIGKILL)
	thawed := m.Freeze(cgroups.Thawed)
	if frozen == nil || err != nil {
		return errors.Join(err, thawed)
	}
	return g.outrun(frozen)
}

// rounds bounds outrun.
const rounds = 1000

// outrun kills what cannot be frozen, until there is nothing new: each round
// sees only what was there when it began.
func (g Group) outrun(why error) error {
	killed := map[int]bool{} // and not gone yet
	for range rounds {
		pids, err := g.Pids()
		if err != nil {
			return err
		}
		pids = slices.DeleteFunc(pids, func(pid int) bool { return killed[pid] })
		if len(pids) == 0 {
			return nil
		}
		if err := send(pids, unix.SIGKILL); err != nil {
			return err
		}
		for _, pid := range pids {
			killed[pid] = true
		}
	}
	return fmt.Errorf("it forks faster than it is killed: %w: %w", why, errdefs.ErrUnavailable)
}

// Destroy kills what is in the cgroup recorded in dir and removes it. The
// cgroup was empty when the container was created, so nothing of others is in
// it. Without a record there is nothing to do.
func Destroy(dir string) error {
	g, err := Load(dir)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	m, err := g.Manager()
	if err != nil {
		return err
	}
	if err := g.Kill(); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return m.Destroy()
}
