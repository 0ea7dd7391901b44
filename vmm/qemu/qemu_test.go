package qemu

import (
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd-kuasar/containerd-kuasar/vmm"
	"github.com/containerd-kuasar/containerd-kuasar/vmm/vmmtest"
)

// options are those of machines that are emulated, with the guest that
// `make guest` builds.
func options(t testing.TB) vmm.Options {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts and cgroups")
	}
	if _, err := Program(""); err != nil {
		t.Skip(err)
	}
	if _, err := exec.LookPath("vhost-device-vsock"); err != nil {
		t.Skip(err)
	}
	o := vmm.Defaults()
	o.Accel, o.Memory = vmm.TCG, 128<<20
	o.Initrd = guest(t, "initramfs.cpio")
	o.Kernel = guest(t, "vmlinux")
	return o
}

func guest(t testing.TB, name string) string {
	path, err := filepath.Abs(filepath.Join("../..", cmp.Or(os.Getenv("KUASAR_TEST_GUEST"), "build/guest"), name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Skipf("needs the guest of `make guest`: %v", err)
	}
	return path
}

func TestQEMU(t *testing.T) {
	vmmtest.Run(t, vmmtest.Suite{
		Driver: Driver{}, Options: options(t),
		Unbootable: func(t *testing.T, o *vmm.Options) {
			o.Kernel = filepath.Join(t.TempDir(), "kernel")
			if err := os.WriteFile(o.Kernel, []byte("no kernel"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	})
}
