// Package wrap changes plugins that containerd has registered.
package wrap

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
)

// Plugin has change work on the registration of the plugin with that URI. Call
// it after all plugins have registered, and before containerd's App runs. If
// there is no such plugin, this release of containerd has moved it.
func Plugin(uri string, change func(*plugin.Registration)) error {
	// The registry has no way to replace a plugin but to register all again.
	all := registry.Graph(func(*plugin.Registration) bool { return false })
	registry.Reset()
	found := false
	for i := range all {
		if all[i].URI() == uri {
			found = true
			change(&all[i])
		}
		registry.Register(&all[i])
	}
	if !found {
		return fmt.Errorf("containerd has no plugin %s to wrap: this release of containerd needs another one of containerd-kuasar: %w", uri, errdefs.ErrFailedPrecondition)
	}
	return nil
}
