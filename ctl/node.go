// Package ctl is what kuasar-ctl does for the operator of a node: it tells what
// the node can run and what runs on it, and looks into virtual machines.
//
// It looks at the same files as the daemon and with the same code, and changes
// nothing. What it can tell without the daemon it tells also while there is
// none.
package ctl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pelletier/go-toml/v2"
	"github.com/sirupsen/logrus"
)

// Config is where containerd's configuration is if nobody says otherwise.
const Config = "/etc/containerd/config.toml"

// Node is a daemon as it is configured. It need not run.
type Node struct {
	Address string // of its socket
	State   string // its directory of that name

	handlers []handler
	plugins  map[string]any
}

// handler is a runtime handler of one of our sandboxers.
type handler struct {
	name, sandboxer string
	options         []byte // TOML
}

// Open reads a daemon's configuration at path, empty for the usual one, which
// need not be there.
func Open(ctx context.Context, path string) (*Node, error) {
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	ctx = log.WithLogger(ctx, logrus.NewEntry(quiet))
	c := config.Config{Version: version.ConfigVersion}
	err := config.LoadConfig(ctx, cmp.Or(path, Config), &c)
	if err != nil && (path != "" || !errors.Is(err, fs.ErrNotExist)) {
		return nil, fmt.Errorf("read configuration %s: %w", cmp.Or(path, Config), err)
	}
	n := &Node{State: cmp.Or(c.State, defaults.DefaultStateDir), plugins: c.Plugins}
	address, _ := n.plugin("io.containerd.server.v1.grpc")["address"].(string)
	n.Address = cmp.Or(address, c.GRPC.Address, defaults.DefaultAddress)
	n.handlers, err = n.read()
	return n, err
}

// dir is where our plugins keep their state.
func (n *Node) dir(name ...string) string {
	return filepath.Join(append([]string{n.State, "kuasar"}, name...)...)
}

// plugin is a plugin's table of the configuration, nil if there is none.
func (n *Node) plugin(id string) map[string]any {
	t, _ := n.plugins[id].(map[string]any)
	return t
}

// text is a plugin's key that is a text.
func (n *Node) text(plugin, key string) string {
	s, _ := n.plugin(plugin)[key].(string)
	return s
}

const (
	pluginWorker = "io.containerd.kuasar.v1.worker"
	pluginVMM    = "io.containerd.sandbox.controller.v1.vmm"
	pluginWasm   = "io.containerd.sandbox.controller.v1.wasm"
)

// read returns the runtime handlers of our sandboxers, by name.
func (n *Node) read() ([]handler, error) {
	var all []handler
	// The second is of configurations before version 3.
	for _, id := range []string{"io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"} {
		containerd, _ := n.plugin(id)["containerd"].(map[string]any)
		runtimes, _ := containerd["runtimes"].(map[string]any)
		for _, name := range slices.Sorted(maps.Keys(runtimes)) {
			r, _ := runtimes[name].(map[string]any)
			sandboxer, _ := r["sandboxer"].(string)
			if !slices.Contains(Sandboxers, sandboxer) {
				continue
			}
			text, err := options(r)
			if err != nil {
				return nil, fmt.Errorf("options of runtime handler %s: %w: %w", name, err, errdefs.ErrInvalidArgument)
			}
			all = append(all, handler{name, sandboxer, text})
		}
	}
	return all, nil
}

// options is a handler's table of that name as TOML.
func options(runtime map[string]any) ([]byte, error) {
	table, ok := runtime["options"]
	if !ok {
		return nil, nil
	}
	return toml.Marshal(table)
}
