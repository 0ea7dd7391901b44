package wasm

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/sandboxtest"
)

func TestConformance(t *testing.T) {
	n := newNode(t)
	sandboxtest.Run(t, sandboxtest.Suite{
		Config: &runtime.PodSandboxConfig{Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent: group,
			SecurityContext: &runtime.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE},
			},
		}},
		Backend: func(*testing.T) sandbox.Backend {
			n.boot()
			return n.backend
		},
		Container: module,
	})
}

func module(t *testing.T, id string) *sandbox.Container {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "a.wasm"), []byte("\x00asm\x01\x00\x00\x00"), 0o644))
	return &sandbox.Container{
		ID:     id,
		Rootfs: []mount.Mount{{Type: "bind", Source: dir, Options: []string{"rbind", "rw"}}},
		Spec: &specs.Spec{
			Version: specs.Version, Root: &specs.Root{Path: "rootfs"},
			Process: &specs.Process{Args: []string{"/a.wasm"}, Cwd: "/"},
			Linux: &specs.Linux{CgroupsPath: group + "/" + id, Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
			}},
		},
	}
}
