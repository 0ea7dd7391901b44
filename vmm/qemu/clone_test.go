package qemu

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/vmm"
	"github.com/containerd-kuasar/containerd-kuasar/vmm/vmmtest"
)

func TestProto(t *testing.T) {
	o := options(t)
	o.Hypervisor = "test"
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), "test"), 3*time.Minute)
	defer cancel()
	reaper, err := pidfd.NewReaper()
	must(err)
	tt, err := vmm.OpenTemplates(ctx, filepath.Join(dir, "templates"), reaper)
	must(err)
	backend := &vmm.Backend{Drivers: map[string]vmm.Driver{"test": Driver{}}, Defaults: o, Reaper: reaper, Templates: tt}
	for i := range 4 {
		netns := ""
		if i == 3 {
			netns, _ = newNetwork(t)
		}
		spec := sandbox.Spec{
			ID: "pod", Namespace: "test", Dir: filepath.Join(dir, "pod"), NetNS: netns, CreatedAt: time.Now(),
			Config: &runtime.PodSandboxConfig{Hostname: "name-of-pod", Linux: &runtime.LinuxPodSandboxConfig{CgroupParent: vmmtest.Group}},
			Saved:  func(context.Context) error { return nil },
		}
		must(os.Mkdir(spec.Dir, 0o711))
		b, err := backend.Create(ctx, spec)
		must(err)
		began := time.Now()
		must(b.Start(ctx))
		t.Log("start took", time.Since(began))
		must(b.Stop(ctx))
		must(b.Delete(ctx))
		must(os.RemoveAll(spec.Dir))
		must(tt.Settled(ctx))
		t.Log(tt.Keys())
	}
}
