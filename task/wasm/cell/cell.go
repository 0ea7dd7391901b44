// Package cell starts a process that sees nothing of this host but what it is
// given: a small root of its own, without privileges.
//
// A thread of the caller's enters the process's namespaces, mounts what the
// process gets, makes that its root, drops its privileges, starts the process
// and ends. So the process never has more than it needs, and nothing is to be
// cleaned up, whatever goes wrong: the mounts end with the last process that
// sees them.
//
// Its root is a read-only tmpfs with what Binds says and, at Root, the
// container's root file system with its mounts.
package cell

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/thread"
)

// Root is where the container's root file system is in a cell.
const Root = "/root"

// Cell says what a process gets.
type Cell struct {
	// Dir is an empty directory of this host that the cell is mounted on. Only
	// the process sees that.
	Dir   string
	Binds []Bind

	Rootfs   string // a directory of this host; empty for none
	ReadOnly bool   // the root file system, without its mounts
	Mounts   []specs.Mount

	NetNS   string // path of one; empty for the caller's
	Offline bool   // it has no network at all
	User    specs.User
	Keep    []string // capabilities that it has, of those in kept
}

// Bind is a file or directory of this host, seen in the cell.
type Bind struct {
	Source, Target string
	Writable       bool
}

// Start starts a program of the cell with the descriptors of files as its own.
// The process is a child of the caller's, who waits for it. It blocks for as
// long as mounting takes.
func (c *Cell) Start(program string, args []string, files []*os.File, sys syscall.SysProcAttr) (pid int, err error) {
	fds := make([]uintptr, len(files))
	for i, f := range files {
		fds[i] = f.Fd()
	}
	err = thread.Do(func() error {
		if err := c.enter(); err != nil {
			return err
		}
		sys.Setsid = true
		var e error
		pid, e = syscall.ForkExec(program, args, &syscall.ProcAttr{Dir: "/", Env: []string{}, Files: fds, Sys: &sys})
		if e != nil {
			return fmt.Errorf("execute %s: %w", program, e)
		}
		return nil
	})
	return pid, err
}

// enter makes the calling thread's file system the cell's and takes its
// privileges.
func (c *Cell) enter() error {
	if err := c.network(); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make mount namespace: %w", err)
	}
	// What is mounted on the host later still gets into volumes.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("leave the host's mounts: %w", err)
	}
	if err := unix.Mount("tmpfs", c.Dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size=64k"); err != nil {
		return fmt.Errorf("mount cell on %s: %w", c.Dir, err)
	}
	for _, b := range c.Binds {
		if err := c.bind(b); err != nil {
			return err
		}
	}
	if c.Rootfs != "" {
		if err := c.rootfs(); err != nil {
			return err
		}
	}
	if err := pivot(c.Dir); err != nil {
		return fmt.Errorf("enter cell %s: %w", c.Dir, err)
	}
	return c.drop()
}

func (c *Cell) network() error {
	if c.Offline {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("leave the network: %w", err)
		}
		return nil
	}
	if c.NetNS == "" {
		return nil
	}
	f, err := os.Open(c.NetNS)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", c.NetNS, err)
	}
	return nil
}

// bind makes one of the cell's files or directories.
func (c *Cell) bind(b Bind) error {
	tree, err := open(b.Source, attributes(!b.Writable), false)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	target := filepath.Join(c.Dir, b.Target)
	if err := place(b.Source, target); err != nil {
		return err
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("bind %s: %w", b.Source, err)
	}
	return nil
}

// place makes something in the cell that source can be mounted on.
func place(source, target string) error {
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return os.MkdirAll(target, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	// Not opened for writing: a child that another thread forks in this moment
	// would have it open, too, and the file system could not be made read-only.
	if err := unix.Mknod(target, unix.S_IFREG|0o644, 0); err != nil && err != unix.EEXIST {
		return &os.PathError{Op: "make", Path: target, Err: err}
	}
	return nil
}

// pivot makes dir the root and forgets the former one. See pivot_root(2) for
// the two dots.
func pivot(dir string) error {
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return err
	}
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	return unix.Chdir("/")
}
