package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // lets managers set device rules
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
	"github.com/containerd-kuasar/containerd-kuasar/task/server"
)

// cgroup is what is kept of a container's cgroup beside libcontainer's state:
// that is written later than the cgroup is made, and is large.
type cgroup struct {
	Paths  map[string]string `json:"paths"`
	Config *cgroups.Cgroup   `json:"config"` // without resources
}

func cgroupFile(ref server.Ref) string { return filepath.Join(ref.Dir, "cgroup.json") }

func saveCgroup(ref server.Ref, c *libcontainer.Container) error {
	s, err := c.State()
	if err != nil {
		return err
	}
	config := *s.Config.Cgroups
	config.Resources = nil
	return record.Write(cgroupFile(ref), cgroup{Paths: s.CgroupPaths, Config: &config})
}

func loadCgroup(ref server.Ref) (cgroup, error) {
	var g cgroup
	_, err := record.Read(cgroupFile(ref), &g)
	if err == nil && g.Config != nil {
		g.Config.Resources = &cgroups.Resources{} // managers want one
	}
	return g, err
}

// Cgroups implements server.Grouper.
func (r *Runtime) Cgroups(_ context.Context, ref server.Ref) (map[string]string, error) {
	g, err := loadCgroup(ref)
	if err != nil {
		return nil, fmt.Errorf("cgroup of container %s: %w", ref.ID, err)
	}
	if !cgroups.IsCgroup2UnifiedMode() {
		delete(g.Paths, "") // of a hybrid host: it has no controllers
	}
	return g.Paths, nil
}

// Pids implements server.Runtime.
func (r *Runtime) Pids(_ context.Context, ref server.Ref) ([]int, error) {
	g, err := loadCgroup(ref)
	if err != nil {
		return nil, fmt.Errorf("processes of container %s: %w", ref.ID, err)
	}
	pids, err := g.pids()
	if err != nil {
		return nil, fmt.Errorf("processes of container %s: %w", ref.ID, err)
	}
	return pids, nil
}

// pids may be empty.
func (g cgroup) pids() ([]int, error) {
	// libcontainer puts every process into all hierarchies; like it we take
	// the one that has no other use for a container.
	dir, ok := g.Paths["devices"]
	if !ok {
		dir, ok = g.Paths[""]
	}
	if !ok {
		return nil, fmt.Errorf("it has no cgroup: %w", errdefs.ErrNotFound)
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

// destroyCgroup kills what is in the cgroup and removes it. The cgroup was
// empty when the container was created, so nothing of others is in it.
func destroyCgroup(ref server.Ref) error {
	g, err := loadCgroup(ref)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	m, err := manager.NewWithPaths(g.Config, g.Paths)
	if err != nil {
		return err
	}
	pids, err := g.pids()
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	for _, pid := range pids {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	return m.Destroy()
}
