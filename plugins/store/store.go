// Package store mends what containerd's CRI plugin makes of the options of a
// handler with one of our sandboxers. They are the sandbox's: the CRI plugin
// gives them to its sandboxer, which keeps them. But it copies them from the
// store of sandboxes to each container, too, and cannot start one with a user
// namespace then, as it takes them for options of runc's shim.
package store

import (
	"context"
	"fmt"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/plugin"

	"github.com/containerd-kuasar/containerd-kuasar/plugins/wrap"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
)

// Stock names the plugin that Register wraps.
const Stock = "io.containerd.sandbox.store.v1.local"

// Register wraps the store of sandboxes.
func Register() error {
	return wrap.Plugin(Stock, func(r *plugin.Registration) {
		stock := r.InitFn
		r.InitFn = func(ic *plugin.InitContext) (any, error) {
			instance, err := stock(ic)
			if err != nil {
				return nil, err
			}
			inner, ok := instance.(core.Store)
			if !ok {
				return nil, fmt.Errorf("wrap %s: it is a %T, which is no store", Stock, instance)
			}
			return store{inner}, nil
		}
	})
}

// store does not tell the options of our sandboxes.
type store struct{ core.Store }

// Get implements core.Store.
func (s store) Get(ctx context.Context, id string) (core.Sandbox, error) {
	box, err := s.Store.Get(ctx, id)
	return discreet(box), err
}

// List implements core.Store.
func (s store) List(ctx context.Context, filters ...string) ([]core.Sandbox, error) {
	all, err := s.Store.List(ctx, filters...)
	for i := range all {
		all[i] = discreet(all[i])
	}
	return all, err
}

func discreet(box core.Sandbox) core.Sandbox {
	if box.Runtime.Name == sandbox.RuntimeType {
		box.Runtime.Options = nil
	}
	return box
}
