package cri

import (
	"encoding/json"
	"maps"
	"testing"

	"github.com/containerd/containerd/v2/plugins"
	_ "github.com/containerd/containerd/v2/plugins/cri/runtime" // registers CRI's
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
)

// If this fails after an upgrade of containerd, CRI's handlers have moved.
func TestHandlers(t *testing.T) {
	all := plugin.NewPluginSet()
	if got, err := handlers(all, "wasm"); err == nil {
		t.Errorf("without CRI: %v", got)
	}
	for _, r := range registry.Graph(func(*plugin.Registration) bool { return false }) {
		if r.Type != plugins.CRIServicePlugin || r.ID != "runtime" {
			continue
		}
		const config = `{"containerd": {"runtimes": {"a": {"sandboxer": "wasm"}, "b": {"sandboxer": "runc"}, "c": {}, "d": {"sandboxer": "wasm"}}}}`
		if err := json.Unmarshal([]byte(config), r.Config); err != nil {
			t.Fatal(err)
		}
		if err := all.Add(&plugin.Plugin{Registration: r, Config: r.Config}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := handlers(all, "wasm")
	if want := map[string]bool{"a": true, "d": true}; err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}
