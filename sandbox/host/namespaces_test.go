package host

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/thread"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes mounts and namespaces")
	}
}

// tempDir is removed only if nothing is mounted in it any more.
func tempDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() {
		b, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if strings.HasPrefix(f[4], dir) {
				t.Errorf("leaked mount %s", f[4])
				_ = unix.Unmount(f[4], unix.MNT_DETACH)
			}
		}
	})
	return dir
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

// inside runs do on a thread in the pod's namespaces.
func inside(t *testing.T, dir, netns string, do func() error) {
	t.Helper()
	err := thread.Do(func() error {
		for kind, path := range map[int]string{
			unix.CLONE_NEWIPC: Pinned(dir, specs.IPCNamespace),
			unix.CLONE_NEWUTS: Pinned(dir, specs.UTSNamespace),
			unix.CLONE_NEWNET: netns,
		} {
			if err := enter(path, kind); err != nil {
				return err
			}
		}
		return do()
	})
	if err != nil {
		t.Fatal(err)
	}
}

// newNetNS pins one as CRI does.
func newNetNS(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "net")
	err := thread.Do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return bind("/proc/thread-self/ns/net", path)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Unmount(path); err != nil {
			t.Error(err)
		}
	})
	return path
}

func sysctl(name string) (string, error) {
	b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	return strings.TrimSpace(string(b)), err
}

func TestPin(t *testing.T) {
	needRoot(t)
	dir, net := tempDir(t), newNetNS(t)
	want := map[string]string{
		"kernel.shmmni": "77", "fs.mqueue.queues_max": "7", "kernel.domainname": "example",
		"net.ipv4.ip_unprivileged_port_start": "81", "net.ipv4.conf.lo.rp_filter": "2",
	}
	n := Namespaces{Net: net, IPC: true, UTS: true, Hostname: "pinned"}
	var err error
	if n.Sysctls, err = n.sysctls(want, Defaults{UnprivilegedICMP: true}); err != nil {
		t.Fatal(err)
	}
	want["net.ipv4.ping_group_range"] = "0\t2147483647"
	before := map[string]string{}
	for name := range want {
		if before[name], err = sysctl(name); err != nil {
			t.Fatal(err)
		}
	}
	self := inode(t, "/proc/self/ns/ipc")
	if err := Pin(dir, n); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []specs.LinuxNamespaceType{specs.IPCNamespace, specs.UTSNamespace} {
		if ok, err := IsPinned(dir, kind); err != nil || !ok {
			t.Errorf("%s namespace is pinned: %t, %v", kind, ok, err)
		}
	}
	if inode(t, Pinned(dir, specs.IPCNamespace)) == self {
		t.Error("the pod's ipc namespace is the host's")
	}
	inside(t, dir, net, func() error {
		for name, value := range want {
			if got, err := sysctl(name); err != nil || got != value {
				t.Errorf("sysctl %s in the pod: %q, %v, want %q", name, got, err, value)
			}
		}
		if got, err := os.Hostname(); err != nil || got != "pinned" {
			t.Errorf("hostname in the pod: %q, %v", got, err)
		}
		return nil
	})
	for name, value := range before {
		if got, err := sysctl(name); err != nil || got != value {
			t.Errorf("sysctl %s of the host has changed: %q, %v, was %q", name, got, err, value)
		}
	}
	for range 2 {
		if err := Unpin(dir); err != nil {
			t.Fatal(err)
		}
	}
	if ok, err := IsPinned(dir, specs.IPCNamespace); err != nil || ok {
		t.Errorf("pinned after Unpin: %t, %v", ok, err)
	}
}

func TestPinAgainAfterACrash(t *testing.T) {
	needRoot(t)
	dir := tempDir(t)
	n := Namespaces{IPC: true}
	for range 2 {
		if err := Pin(dir, n); err != nil {
			t.Fatal(err)
		}
	}
	// One Unpin is enough: the second Pin did not mount over the first.
	if err := unix.Unmount(Pinned(dir, specs.IPCNamespace), unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if ok, err := IsPinned(dir, specs.IPCNamespace); err != nil || ok {
		t.Errorf("a mount is left below: %t, %v", ok, err)
	}
}

func TestPinNamesTheSysctl(t *testing.T) {
	needRoot(t)
	for name, value := range map[string]string{"kernel.sem": "nonsense", "fs.mqueue.no_such": "1"} {
		n := Namespaces{IPC: true, Sysctls: Sysctls{IPC: map[string]string{name: value}}}
		dir := tempDir(t)
		if err := Pin(dir, n); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPinOwner(t *testing.T) {
	needRoot(t)
	dir, net := tempDir(t), newNetNS(t)
	if err := PinOwner(dir, net); err != nil {
		t.Fatal(err)
	}
	if inode(t, Pinned(dir, specs.UserNamespace)) != inode(t, "/proc/self/ns/user") {
		t.Error("the network namespace was made in this user namespace, and another is pinned")
	}
	if err := Unpin(dir); err != nil {
		t.Fatal(err)
	}
	if err := PinOwner(dir, filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing network namespace: %v", err)
	}
}

func TestPinProcess(t *testing.T) {
	needRoot(t)
	dir := tempDir(t)
	if err := PinProcess(dir, os.Getpid(), specs.PIDNamespace, specs.UTSNamespace); err != nil {
		t.Fatal(err)
	}
	if inode(t, Pinned(dir, specs.PIDNamespace)) != inode(t, "/proc/self/ns/pid") {
		t.Error("another pid namespace is pinned")
	}
	if err := Unpin(dir); err != nil {
		t.Fatal(err)
	}
}
