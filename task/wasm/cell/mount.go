package cell

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// rootfs makes the container's root file system and its mounts.
func (c *Cell) rootfs() error {
	target := filepath.Join(c.Dir, Root)
	if err := c.bind(Bind{Source: c.Rootfs, Target: Root, Writable: true}); err != nil {
		return err
	}
	root, err := os.Open(target)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, m := range c.Mounts {
		if Passed(m) {
			continue
		}
		if err := mount(root, m); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.Source, m.Destination, err)
		}
	}
	if !c.ReadOnly {
		return nil
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(int(root.Fd()), "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("make the root file system read-only: %w", err)
	}
	return nil
}

// Passed says that a mount is for programs of Linux: a module has no use for
// the kernel's file systems and devices, and gets none of it through them. What
// else is in /dev is a volume: the kubelet puts a termination message there.
func Passed(m specs.Mount) bool {
	switch m.Type {
	case "proc", "sysfs", "cgroup", "cgroup2", "mqueue", "devpts":
		return true
	}
	target := filepath.Clean(m.Destination)
	return target == "/dev" || target == "/dev/shm"
}

// mount mounts one on the root file system. The image decides what is there:
// nothing outside of it is ever reached, whatever its links say.
func mount(root *os.File, m specs.Mount) error {
	var tree int
	var err error
	switch {
	case m.Type == "bind" || slices.ContainsFunc(m.Options, bound):
		if tree, err = open(m.Source, attributes(false, m.Options...), !slices.Contains(m.Options, "bind")); err == nil {
			err = protect(tree, m)
		}
	case m.Type == "tmpfs":
		tree, err = tmpfs(m.Options)
	default:
		err = fmt.Errorf("type %q has no meaning for a module: take it out: %w", m.Type, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	target, err := point(root, m.Destination, tree)
	if err != nil {
		return err
	}
	defer target.Close()
	return unix.MoveMount(tree, "", int(target.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// protect makes a tree of mounts read-only: its root with "ro", all of it with
// "rro". It closes the tree if it cannot.
func protect(tree int, m specs.Mount) error {
	flags := uint(unix.AT_EMPTY_PATH)
	switch {
	case slices.Contains(m.Options, "rro"):
		flags |= unix.AT_RECURSIVE
	case !slices.Contains(m.Options, "ro"):
		return nil
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(tree, "", flags, &attr); err != nil {
		unix.Close(tree)
		return fmt.Errorf("make %s read-only: %w", m.Source, err)
	}
	return nil
}

func bound(option string) bool { return option == "bind" || option == "rbind" }

// open copies a tree of mounts and gives the copy attributes.
func open(source string, attr unix.MountAttr, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	deep := uint(0)
	if recursive {
		deep = unix.AT_RECURSIVE
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, flags|deep)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", source, err)
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|deep, &attr); err != nil {
		unix.Close(tree)
		return -1, fmt.Errorf("set attributes of %s: %w", source, err)
	}
	return tree, nil
}

// attributes of a mount. Devices and other users' rights are never a module's.
func attributes(readOnly bool, options ...string) unix.MountAttr {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if slices.Contains(options, "noexec") {
		attr.Attr_set |= unix.MOUNT_ATTR_NOEXEC
	}
	return attr
}

// flags are options that are not the tmpfs's own.
var flags = []string{"ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "strictatime", "relatime", "noatime", "nodiratime",
	"private", "rprivate", "slave", "rslave", "shared", "rshared", "rbind", "bind", "tmpcopyup"}

func tmpfs(options []string) (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	for _, o := range options {
		key, value, valued := strings.Cut(o, "=")
		if slices.Contains(flags, key) {
			continue
		}
		if valued {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			return -1, fmt.Errorf("option %s: %w", o, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	attr := attributes(slices.Contains(options, "ro"), options...)
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(attr.Attr_set))
}

// point finds or makes what a mount is put on, of the mount's own kind.
func point(root *os.File, path string, tree int) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return pathrs.MkdirAllHandle(root, path, 0o755)
	}
	if f, err := pathrs.OpenatInRoot(root, path); err == nil {
		return f, nil
	}
	dir, err := pathrs.MkdirAllHandle(root, filepath.Dir(filepath.Clean("/"+path)), 0o755)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.Openat(int(dir.Fd()), filepath.Base(path), unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}
