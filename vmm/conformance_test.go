package vmm_test

import (
	"os"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/sandboxtest"
	"github.com/containerd-kuasar/containerd-kuasar/vmm"
	"github.com/containerd-kuasar/containerd-kuasar/vmm/vmmtest"
)

func root(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts and cgroups")
	}
}

// backend has one driver.
func backend(t *testing.T, d vmm.Driver) *vmm.Backend {
	r, err := pidfd.NewReaper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	o := vmm.Defaults()
	o.Hypervisor, o.Accel, o.Kernel, o.Initrd = "test", vmm.TCG, "/dev/null", "/dev/null"
	return &vmm.Backend{Drivers: map[string]vmm.Driver{"test": d}, Defaults: o, Reaper: r}
}

// The framework's suite, with machines that are only processes.
func TestSandbox(t *testing.T) {
	root(t)
	sandboxtest.Run(t, sandboxtest.Suite{
		Backend: func(t *testing.T) sandbox.Backend { return backend(t, vmmtest.Fake{}) },
		Config:  &runtime.PodSandboxConfig{Linux: &runtime.LinuxPodSandboxConfig{CgroupParent: vmmtest.Group}},
		Container: func(t *testing.T, id string) *sandbox.Container {
			return &sandbox.Container{
				ID: id,
				Spec: &specs.Spec{
					Version: specs.Version, Root: &specs.Root{Path: "rootfs"}, Process: &specs.Process{Args: []string{"/true"}, Cwd: "/"},
					Mounts: []specs.Mount{
						{Destination: "/data", Type: "bind", Source: t.TempDir(), Options: []string{"rbind", "ro"}},
						{Destination: "/etc/passwd", Type: "bind", Source: "/etc/passwd", Options: []string{"rbind"}},
					},
				},
				Rootfs: []mount.Mount{{Type: "bind", Source: t.TempDir(), Options: []string{"rbind"}}},
			}
		},
		Leaks: vmmtest.Leaks,
	})
}
