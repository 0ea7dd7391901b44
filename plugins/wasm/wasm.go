// Package wasm registers the sandboxer "wasm": WebAssembly modules as
// containers, without a shim and without a pause container.
package wasm

import (
	"fmt"
	"path/filepath"

	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/plugin"

	"github.com/containerd-kuasar/containerd-kuasar/plugins/sandboxer"
	"github.com/containerd-kuasar/containerd-kuasar/plugins/worker"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/host"
	"github.com/containerd-kuasar/containerd-kuasar/wasm"
)

// Config of the plugin.
type Config struct {
	// Wasmtime is the path of kuasar-wasmtime, WasmEdge that of wasmedge. An
	// empty one is looked for beside the daemon's own binary, then in PATH,
	// each time that it is needed.
	Wasmtime string `toml:"wasmtime"`
	WasmEdge string `toml:"wasmedge"`

	// CacheSize bounds the directory of compiled modules, in bytes; 0 is 2 GiB.
	CacheSize int64 `toml:"cache_size"`
}

func init() {
	config := &Config{}
	sandboxer.Register(sandboxer.Registration{
		Name:     "wasm",
		Config:   config,
		Requires: []plugin.Type{worker.Type},
		Backend: func(ic *plugin.InitContext, _ string) (sandbox.Backend, error) {
			c := ic.Config.(*Config)
			if err := c.check(); err != nil {
				return nil, err
			}
			w, err := worker.Get(ic)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
			}
			root := filepath.Dir(ic.Properties[plugins.PropertyRootDir])
			return &wasm.Backend{
				Worker: w, Find: c.find, Cache: filepath.Join(root, "kuasar", "wasm-cache"), CacheSize: c.CacheSize,
				Sysctls: func() host.Defaults { return host.Defaults{UnprivilegedPorts: true, UnprivilegedICMP: true} },
			}, nil
		},
	})
}

func (c *Config) check() error {
	for key, path := range map[string]string{"wasmtime": c.Wasmtime, "wasmedge": c.WasmEdge} {
		if path != "" && !filepath.IsAbs(path) {
			return fmt.Errorf("%s = %q is not absolute: %w", key, path, errdefs.ErrInvalidArgument)
		}
	}
	if c.CacheSize < 0 {
		return fmt.Errorf("cache_size = %d is negative: %w", c.CacheSize, errdefs.ErrInvalidArgument)
	}
	return nil
}

// find returns the path of an engine's program, empty for one that needs none.
func (c *Config) find(name string) (string, error) {
	return wasm.Programs{Wasmtime: c.Wasmtime, WasmEdge: c.WasmEdge}.Find(name)
}
