package plugins

import (
	"slices"
	"testing"

	_ "github.com/containerd/containerd/v2/cmd/containerd/builtins"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"

	"github.com/containerd-kuasar/containerd-kuasar/plugins/artifact"
	"github.com/containerd-kuasar/containerd-kuasar/plugins/cri"
	"github.com/containerd-kuasar/containerd-kuasar/plugins/store"
	"github.com/containerd-kuasar/containerd-kuasar/plugins/tasks"
)

// TestRegister fails when a release of containerd has moved what we wrap.
func TestRegister(t *testing.T) {
	before := registered()
	if err := Register(); err != nil {
		t.Fatal(err)
	}
	after := registered()
	if len(before) != len(after) {
		t.Errorf("%d plugins, %d before", len(after), len(before))
	}
	for _, uri := range []string{tasks.Stock, cri.Stock, artifact.Stock, store.Stock} {
		if _, found := after[uri]; !found {
			t.Errorf("plugin %s is gone", uri)
		}
	}
	if r := after[tasks.Stock]; !slices.Contains(r.Requires, plugins.SandboxControllerPlugin) {
		t.Errorf("%s starts without the sandboxers: it requires %v", tasks.Stock, r.Requires)
	}
	for _, uri := range []string{"io.containerd.sandbox.controller.v1.runc", "io.containerd.sandbox.controller.v1.vmm", "io.containerd.kuasar.v1.worker"} {
		if _, found := after[uri]; !found {
			t.Errorf("plugin %s is not registered", uri)
		}
	}
}

func registered() map[string]plugin.Registration {
	all := map[string]plugin.Registration{}
	for _, r := range registry.Graph(func(*plugin.Registration) bool { return false }) {
		all[r.URI()] = r
	}
	return all
}
