// Package worker makes the node's one worker (see task/worker) a plugin of
// containerd, which the backends of pods on the host share.
package worker

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"

	"github.com/containerd-kuasar/containerd-kuasar/internal/binary"
	"github.com/containerd-kuasar/containerd-kuasar/plugins/sandboxer"
	"github.com/containerd-kuasar/containerd-kuasar/task/worker"
)

const (
	// Type of the plugin, which those that want the worker require. It is not
	// containerd's internal type: some of those require the task service,
	// which in turn needs the sandboxers.
	Type plugin.Type = "io.containerd.kuasar.v1"
	// ID of the plugin.
	ID = "worker"
)

// name of the agent's binary.
const name = "kuasar-task"

// Config of the plugin.
type Config struct {
	// Path of kuasar-task. If empty it is looked for beside the daemon's own
	// binary, then in PATH, each time that a worker is started.
	Path string `toml:"path"`

	// Cgroup of the worker, from the root of each hierarchy. It must be
	// outside that of containerd's service, so that neither its stop nor its
	// limits reach the containers.
	Cgroup string `toml:"cgroup"`
}

func init() {
	registry.Register(&plugin.Registration{
		Type:   Type,
		ID:     ID,
		Config: &Config{Cgroup: "/kuasar-task"},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			c := ic.Config.(*Config)
			if err := c.check(); err != nil {
				return nil, fmt.Errorf("plugin %s.%s: %w", Type, ID, err)
			}
			return worker.New(worker.Config{
				Find:   c.find,
				Dir:    filepath.Join(sandboxer.Dir(ic), "worker"),
				Cgroup: c.Cgroup,
			})
		},
	})
}

// Get returns the worker to a plugin that requires Type.
func Get(ic *plugin.InitContext) (*worker.Worker, error) {
	p, err := ic.GetByID(Type, ID)
	if err != nil {
		return nil, err
	}
	return p.(*worker.Worker), nil
}

func (c *Config) check() error {
	if c.Path != "" && !filepath.IsAbs(c.Path) {
		return fmt.Errorf("path = %q is not absolute: %w", c.Path, errdefs.ErrInvalidArgument)
	}
	if c.Cgroup == "/" || !filepath.IsAbs(c.Cgroup) || filepath.Clean(c.Cgroup) != c.Cgroup || strings.ContainsRune(c.Cgroup, 0) {
		return fmt.Errorf("cgroup = %q is not the path of a cgroup below the root: %w", c.Cgroup, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (c *Config) find() (string, error) {
	if c.Path != "" {
		return c.Path, nil
	}
	path, err := binary.Find(name)
	if err != nil {
		return "", fmt.Errorf("%w: install it, or set path below [plugins.'%s.%s']", err, Type, ID)
	}
	return path, nil
}
