package guest

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// Boot makes a machine of what the kernel starts PID 1 with, as far as the
// agent needs it to listen. It is PID 1's alone.
func Boot(m *Modules) error {
	for _, step := range []func() error{root, mounts, groups, limits, loopback} {
		if err := step(); err != nil {
			return fmt.Errorf("boot: %w", err)
		}
	}
	return m.Load("virtio_pci", "virtio_mmio", "vmw_vsock_virtio_transport")
}

// root puts a mount where the initramfs was: containers pivot to their root
// file systems, which the kernel refuses as long as the old root is the one it
// started with. The files stay what and where they are.
func root() error {
	const dir = "/root"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("/", dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind the root: %w", err)
	}
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	return unix.Chdir("/")
}

const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// mounts are a pod's as they are on a host with systemd, which is what images
// are made for.
func mounts() error {
	for _, m := range []struct {
		kind, target string
		flags        uintptr
		data         string
	}{
		{"proc", "/proc", safe, ""},
		{"sysfs", "/sys", safe, ""},
		{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=0755"},
		{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		{"tmpfs", "/dev/shm", safe, "mode=1777"},
		{"cgroup2", cgroupRoot, safe, ""},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	for dir, mode := range map[string]os.FileMode{"/run": 0o755, "/tmp": 0o777 | os.ModeSticky} {
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.Chmod(dir, mode)); err != nil {
			return err
		}
	}
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// groups gives containers' cgroups all controllers.
func groups() error {
	b, err := os.ReadFile(cgroupRoot + "/cgroup.controllers")
	if err != nil {
		return err
	}
	for _, c := range strings.Fields(string(b)) {
		if err := os.WriteFile(cgroupRoot+"/cgroup.subtree_control", []byte("+"+c), 0); err != nil {
			return fmt.Errorf("enable cgroup controller %s: %w", c, err)
		}
	}
	return nil
}

// limits are those that a container gets which asks for none. The kernel's are
// for a login, and by far too low for servers.
func limits() error {
	const files = 1 << 20 // the kernel's default of fs.nr_open
	const all = unix.RLIM_INFINITY
	for resource, l := range map[int]unix.Rlimit{
		unix.RLIMIT_NOFILE: {Cur: files, Max: files},
		unix.RLIMIT_NPROC:  {Cur: all, Max: all},
		unix.RLIMIT_CORE:   {Cur: all, Max: all},
	} {
		if err := unix.Setrlimit(resource, &l); err != nil {
			return fmt.Errorf("set resource limit %d: %w", resource, err)
		}
	}
	return nil
}

func loopback() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}
