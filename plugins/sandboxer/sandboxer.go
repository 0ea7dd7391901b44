// Package sandboxer registers backends as containerd's sandbox controllers.
package sandboxer

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
)

// Registration is one sandboxer.
type Registration struct {
	Name     string        // containerd's config selects it by `sandboxer`
	Config   any           // pointer to its defaults; TOML below plugins.'io.containerd.sandbox.controller.v1.<name>'
	Requires []plugin.Type // beside what every sandboxer needs

	// Backend makes the backend. dir is a directory of the state file system
	// that all our plugins share (see Dir). An error of class
	// errdefs.ErrUnavailable says that this node lacks something the backend
	// needs, which is nothing to worry about.
	Backend func(ic *plugin.InitContext, dir string) (sandbox.Backend, error)
}

// Register makes r a plugin of containerd. Its instance is a
// *sandbox.Controller.
//
// A sandboxer that cannot be had is skipped, whatever the reason: containerd's
// CRI plugin does not start if one that it requires has failed, and the node
// would lose all of its pods for the sake of one kind. Its own pods are then in
// the state Unknown, and nothing is done to them.
func Register(r Registration) {
	registry.Register(&plugin.Registration{
		Type:     plugins.SandboxControllerPlugin,
		ID:       r.Name,
		Requires: append([]plugin.Type{plugins.EventPlugin, plugins.SandboxStorePlugin}, r.Requires...),
		Config:   r.Config,
		InitFn: func(ic *plugin.InitContext) (any, error) {
			c, err := r.open(ic)
			if err == nil {
				return c, nil
			}
			if !errdefs.IsUnavailable(err) {
				// containerd says no more than that it skips it.
				log.G(ic.Context).WithError(err).Error("sandboxer does not start and is left out")
			}
			return nil, errors.Join(err, plugin.ErrSkipPlugin)
		},
	})
}

// Dir is where our plugins keep their state: <containerd's state>/kuasar. It
// is short, as unix sockets' paths must be, and outside the directories that
// containerd's own plugins clean up.
func Dir(ic *plugin.InitContext) string {
	return filepath.Join(filepath.Dir(ic.Properties[plugins.PropertyStateDir]), "kuasar")
}

func (r Registration) open(ic *plugin.InitContext) (*sandbox.Controller, error) {
	publisher, err := ic.GetSingle(plugins.EventPlugin)
	if err != nil {
		return nil, fmt.Errorf("sandboxer %s: %w", r.Name, err)
	}
	dir := Dir(ic)
	backend, err := r.Backend(ic, dir)
	if err != nil {
		return nil, fmt.Errorf("sandboxer %s: %w", r.Name, err)
	}
	return sandbox.New(ic.Context, sandbox.Config{
		Name:    r.Name,
		Dir:     filepath.Join(dir, r.Name),
		Backend: backend,
		Events:  publisher.(events.Publisher),
	})
}
