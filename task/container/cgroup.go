package container

import (
	"context"
	"fmt"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-kuasar/containerd-kuasar/task/group"
	"github.com/containerd-kuasar/containerd-kuasar/task/server"
)

// saveGroup records the container's cgroup beside libcontainer's state: that is
// written later than the cgroup is made, and is large.
func saveGroup(ref server.Ref, c *libcontainer.Container) error {
	s, err := c.State()
	if err != nil {
		return err
	}
	config := *s.Config.Cgroups
	config.Resources = nil
	return group.Group{Paths: s.CgroupPaths, Config: &config}.Save(ref.Dir)
}

// Cgroups implements server.Grouper.
func (r *Runtime) Cgroups(_ context.Context, ref server.Ref) (map[string]string, error) {
	g, err := group.Load(ref.Dir)
	if err != nil {
		return nil, fmt.Errorf("cgroup of container %s: %w", ref.ID, err)
	}
	return g.Controllers(), nil
}

// Pids implements server.Runtime.
func (r *Runtime) Pids(_ context.Context, ref server.Ref) ([]int, error) {
	g, err := group.Load(ref.Dir)
	if err != nil {
		return nil, fmt.Errorf("processes of container %s: %w", ref.ID, err)
	}
	pids, err := g.Pids()
	if err != nil {
		return nil, fmt.Errorf("processes of container %s: %w", ref.ID, err)
	}
	return pids, nil
}

// Update implements server.Updater. Devices are left as they are: others may
// have changed them since (GPU hooks do).
func (r *Runtime) Update(_ context.Context, ref server.Ref, res *specs.LinuxResources) error {
	c, err := load(ref)
	if err != nil {
		return err
	}
	// Set returns to what c has if the kernel refuses, so that is not changed.
	config := c.Config()
	cgroup := *config.Cgroups
	cgroup.Resources = group.Merge(*config.Cgroups.Resources, res)
	cgroup.SkipDevices = true
	config.Cgroups = &cgroup
	if err := c.Set(config); err != nil {
		return fmt.Errorf("update container %s: %w", ref.ID, class(err))
	}
	return nil
}
