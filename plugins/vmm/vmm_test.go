package vmm

import (
	"context"
	"testing"

	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"

	"github.com/containerd-kuasar/containerd-kuasar/vmm"
	"github.com/containerd-kuasar/containerd-kuasar/vmm/drivers"
)

func TestRegistered(t *testing.T) {
	for _, r := range registry.Graph(func(*plugin.Registration) bool { return false }) {
		if r.Type == plugins.SandboxControllerPlugin && r.ID == "vmm" {
			return
		}
	}
	t.Error("there is no sandboxer vmm")
}

func TestConfig(t *testing.T) {
	if _, ok := drivers.All()[vmm.Defaults().Hypervisor]; !ok {
		t.Errorf("the default hypervisor is %q", vmm.Defaults().Hypervisor)
	}
	ic := plugin.NewContext(context.Background(), plugin.NewPluginSet(), nil)
	ic.Config = &Config{"memory": int64(512), "allow": []any{"memory"}}
	b, err := open(ic, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	backend := b.(*vmm.Backend)
	defer backend.Reaper.Close()
	if o := backend.Defaults; o.Memory != 512<<20 || len(o.Allow) != 1 || o.VCPUs != vmm.Defaults().VCPUs {
		t.Errorf("defaults %+v", o)
	}
	ic.Config = &Config{"memorie": int64(512)}
	if _, err := open(ic, t.TempDir()); !errdefs.IsInvalidArgument(err) {
		t.Errorf("unknown key: %v", err)
	}
}
