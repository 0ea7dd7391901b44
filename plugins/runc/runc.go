// Package runc registers the sandboxer "runc": plain containers without a shim
// and without a pause container.
package runc

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/plugin"

	"github.com/containerd-kuasar/containerd-kuasar/plugins/sandboxer"
	"github.com/containerd-kuasar/containerd-kuasar/plugins/worker"
	"github.com/containerd-kuasar/containerd-kuasar/runc"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
)

func init() {
	sandboxer.Register(sandboxer.Registration{
		Name:     "runc",
		Requires: []plugin.Type{worker.Type},
		Backend: func(ic *plugin.InitContext, _ string) (sandbox.Backend, error) {
			w, err := worker.Get(ic)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
			}
			// CRI comes up later: it needs the sandboxers.
			all, ctx := ic.Plugins(), ic.Context
			return &runc.Backend{Worker: w, Defaults: sync.OnceValue(func() runc.Options { return defaults(ctx, all) })}, nil
		},
	})
}

// defaults are the CRI plugin's settings of the same meaning, which apply to
// stock pods. CRI may be disabled.
func defaults(ctx context.Context, all *plugin.Set) runc.Options {
	o := runc.Defaults()
	cri := all.Get(plugins.CRIServicePlugin, "runtime")
	if cri == nil {
		return o
	}
	// Its type is internal to containerd; the JSON is what it logs.
	b, err := json.Marshal(cri.Config)
	if err == nil {
		var c struct {
			Ports *bool `json:"enableUnprivilegedPorts"`
			ICMP  *bool `json:"enableUnprivilegedICMP"`
		}
		if err = json.Unmarshal(b, &c); err == nil && (c.Ports == nil || c.ICMP == nil) {
			err = errdefs.ErrNotFound
		}
		if err == nil {
			o.EnableUnprivilegedPorts, o.EnableUnprivilegedICMP = *c.Ports, *c.ICMP
		}
	}
	if err != nil {
		log.G(ctx).WithError(err).Warn("CRI's enable_unprivileged_ports and enable_unprivileged_icmp are not found: pods get containerd's defaults")
	}
	return o
}
