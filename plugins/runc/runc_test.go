package runc

import (
	"encoding/json"
	"testing"

	_ "github.com/containerd/containerd/v2/plugins/cri/runtime" // registers CRI's
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"

	"github.com/containerd/containerd/v2/plugins"

	"github.com/containerd-kuasar/containerd-kuasar/runc"
)

// If this fails after an upgrade of containerd, CRI's settings have moved.
func TestDefaultsAreThoseOfCRI(t *testing.T) {
	all := plugin.NewPluginSet()
	if got := defaults(t.Context(), all); got != runc.Defaults() {
		t.Errorf("without CRI: %+v", got)
	}
	for _, r := range registry.Graph(func(*plugin.Registration) bool { return false }) {
		if r.Type != plugins.CRIServicePlugin || r.ID != "runtime" {
			continue
		}
		if err := json.Unmarshal([]byte(`{"enableUnprivilegedPorts": false, "enableUnprivilegedICMP": true}`), r.Config); err != nil {
			t.Fatal(err)
		}
		if err := all.Add(&plugin.Plugin{Registration: r, Config: r.Config}); err != nil {
			t.Fatal(err)
		}
	}
	if all.Get(plugins.CRIServicePlugin, "runtime") == nil {
		t.Fatal("CRI has no plugin of this name any more")
	}
	want := runc.Options{EnableUnprivilegedICMP: true}
	if got := defaults(t.Context(), all); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestRegistered(t *testing.T) {
	for _, r := range registry.Graph(func(*plugin.Registration) bool { return false }) {
		if r.Type == plugins.SandboxControllerPlugin && r.ID == "runc" {
			return
		}
	}
	t.Error("there is no sandboxer runc")
}
