// Package tasks runs the tasks of our sandboxes inside the daemon.
//
// containerd's plugin io.containerd.runtime.v2.task starts a shim binary for
// every task. Register puts a Runtime in its place: a task whose sandbox is
// one of ours goes straight to the sandbox's agent, everything else to the
// stock plugin, which runs as it always did.
//
//	CRI, ctr ──► tasks service ──► Runtime ──► Sandbox.Prepare, agent
//	                                  └──────► stock TaskManager ──► shim
package tasks

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"

	"github.com/containerd-kuasar/containerd-kuasar/plugins/sandboxer"
	"github.com/containerd-kuasar/containerd-kuasar/plugins/wrap"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
)

// Stock names the plugin that Register wraps.
const Stock = "io.containerd.runtime.v2.task"

// Register wraps the stock plugin.
func Register() error { return wrap.Plugin(Stock, enclose) }

func enclose(r *plugin.Registration) {
	stock := r.InitFn
	r.Requires = append(r.Requires, plugins.SandboxControllerPlugin, plugins.EventPlugin, plugins.MetadataPlugin)
	r.InitFn = func(ic *plugin.InitContext) (any, error) {
		instance, err := stock(ic)
		if err != nil {
			return nil, err
		}
		inner, ok := instance.(Inner)
		if !ok {
			return nil, fmt.Errorf("wrap %s: it is a %T, which is no runtime", Stock, instance)
		}
		return open(ic, inner)
	}
}

// Inner is what containerd expects of the plugin and the stock one has.
type Inner interface {
	runtime.PlatformRuntime
	informer
}

func open(ic *plugin.InitContext, stock Inner) (*Runtime, error) {
	publisher, err := ic.GetSingle(plugins.EventPlugin)
	if err != nil {
		return nil, err
	}
	db, err := ic.GetSingle(plugins.MetadataPlugin)
	if err != nil {
		return nil, err
	}
	cfg := Config{
		Stock:      stock,
		Publisher:  publisher.(events.Publisher),
		Containers: metadata.NewContainerStore(db.(*metadata.DB)),
		Dir:        filepath.Join(sandboxer.Dir(ic), "tasks"),
	}
	mounts, err := ic.GetSingle(plugins.MountManagerPlugin)
	switch {
	case err == nil:
		cfg.Mounts = mounts.(mount.Manager)
	case !errors.Is(err, plugin.ErrPluginNotFound):
		return nil, err
	}
	controllers, err := ic.GetByType(plugins.SandboxControllerPlugin)
	if err != nil && !errors.Is(err, plugin.ErrPluginNotFound) {
		return nil, err
	}
	for _, c := range controllers {
		if ours, ok := c.(*sandbox.Controller); ok {
			cfg.Controllers = append(cfg.Controllers, ours)
		}
	}
	return New(ic.Context, cfg)
}
