// Package vmm registers the sandboxer "vmm": pods in virtual machines.
package vmm

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/log"
	"github.com/containerd/plugin"
	"github.com/pelletier/go-toml/v2"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/plugins/sandboxer"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/vmm"
	"github.com/containerd-kuasar/containerd-kuasar/vmm/drivers"
)

// Config of the plugin: options, by the keys that a handler's have, of handlers
// that do not set them.
type Config map[string]any

func init() {
	sandboxer.Register(sandboxer.Registration{Name: "vmm", Config: &Config{}, Backend: open})
}

func open(ic *plugin.InitContext, dir string) (sandbox.Backend, error) {
	defaults, err := ic.Config.(*Config).defaults()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	reaper, err := pidfd.NewReaper()
	if err != nil {
		return nil, err
	}
	templates, err := vmm.OpenTemplates(ic.Context, filepath.Join(dir, "templates"), reaper)
	if err != nil { // pods boot
		log.G(ic.Context).WithError(err).Warn("virtual machines cannot be cloned from templates")
	}
	return &vmm.Backend{Drivers: drivers.All(), Defaults: defaults, Reaper: reaper, Prove: drivers.Prover(dir).Prove, Templates: templates}, nil
}

func (c *Config) defaults() (vmm.Options, error) {
	text, err := toml.Marshal(*c)
	if err != nil {
		return vmm.Options{}, fmt.Errorf("configuration: %w", err)
	}
	return vmm.Defaults().With(text)
}
