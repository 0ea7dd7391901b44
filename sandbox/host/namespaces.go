package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/thread"
)

var (
	fpPin   = failpoint.New("host/namespaces/pin")
	fpUnpin = failpoint.New("host/namespaces/unpin")
)

// files are the names of namespaces in /proc/<pid>/ns, and in a sandbox's ns.
var files = map[specs.LinuxNamespaceType]string{
	specs.NetworkNamespace: "net",
	specs.IPCNamespace:     "ipc",
	specs.UTSNamespace:     "uts",
	specs.PIDNamespace:     "pid",
	specs.UserNamespace:    "user",
}

// pinned are the types that a sandbox may have in its ns directory; the
// network namespace is CRI's.
var pinned = []specs.LinuxNamespaceType{specs.IPCNamespace, specs.UTSNamespace, specs.UserNamespace, specs.PIDNamespace}

// Pinned is where the sandbox's namespace of type t is pinned.
func Pinned(dir string, t specs.LinuxNamespaceType) string {
	return filepath.Join(dir, "ns", files[t])
}

// IsPinned says whether there is a namespace at Pinned.
func IsPinned(dir string, t specs.LinuxNamespaceType) (bool, error) {
	kind, err := fileSystem(Pinned(dir, t))
	return kind == unix.NSFS_MAGIC, err
}

// Pin makes the pod's ipc and uts namespaces and pins them, and sets hostname
// and sysctls in them and in its network namespace. No process stays: a thread
// enters new namespaces, does its work and dies. n.User must be nil, for a
// thread cannot enter a user namespace: see PinProcess.
func Pin(dir string, n Namespaces) error {
	if n.User != nil {
		return errors.New("pin namespaces: a thread cannot enter a user namespace")
	}
	if err := os.Mkdir(filepath.Join(dir, "ns"), 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return thread.Do(func() error { return pin(dir, n) })
}

func pin(dir string, n Namespaces) error {
	var flags int
	var types []specs.LinuxNamespaceType
	if n.IPC {
		flags, types = flags|unix.CLONE_NEWIPC, append(types, specs.IPCNamespace)
	}
	if n.UTS {
		flags, types = flags|unix.CLONE_NEWUTS, append(types, specs.UTSNamespace)
	}
	if flags != 0 {
		if err := unix.Unshare(flags); err != nil {
			return fmt.Errorf("make namespaces %v: %w", types, err)
		}
	}
	if n.Hostname != "" {
		if err := unix.Sethostname([]byte(n.Hostname)); err != nil {
			return fmt.Errorf("set hostname %q: %w", n.Hostname, err)
		}
	}
	if len(n.Sysctls.Net) > 0 {
		if err := enter(n.Net, unix.CLONE_NEWNET); err != nil {
			return err
		}
	}
	if err := setSysctls(n.Sysctls.All()); err != nil {
		return err
	}
	for _, t := range types {
		if err := bind("/proc/thread-self/ns/"+files[t], Pinned(dir, t)); err != nil {
			return err
		}
		fpPin.Hit()
	}
	return nil
}

// PinProcess pins namespaces of a process, which may then end.
func PinProcess(dir string, pid int, types ...specs.LinuxNamespaceType) error {
	if err := os.Mkdir(filepath.Join(dir, "ns"), 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, t := range types {
		if err := bind("/proc/"+strconv.Itoa(pid)+"/ns/"+files[t], Pinned(dir, t)); err != nil {
			return err
		}
		fpPin.Hit()
	}
	return nil
}

// PinOwner pins the user namespace that the network namespace at netns was
// made in: only from there may a container mount its sysfs.
func PinOwner(dir, netns string) error {
	f, err := os.Open(netns)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer f.Close()
	fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return fmt.Errorf("find the user namespace of %s: %w", netns, err)
	}
	defer unix.Close(fd)
	if err := os.Mkdir(filepath.Join(dir, "ns"), 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	err = bind("/proc/self/fd/"+strconv.Itoa(fd), Pinned(dir, specs.UserNamespace))
	fpPin.Hit()
	return err
}

// Unpin undoes all of the above. Idempotent.
func Unpin(dir string) error {
	var errs []error
	for _, t := range pinned {
		errs = append(errs, Unmount(Pinned(dir, t)))
		fpUnpin.Hit()
	}
	return errors.Join(errs...)
}

func bind(source, target string) error {
	f, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY|unix.O_NOFOLLOW, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	if err := Unmount(target); err != nil { // of a start that crashed
		return err
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin namespace at %s: %w", target, err)
	}
	return nil
}

func enter(path string, kind int) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), kind); err != nil {
		return fmt.Errorf("enter %s: %w", path, err)
	}
	return nil
}

// setSysctls writes those of the calling thread's namespaces.
func setSysctls(sysctls map[string]string) error {
	for name, value := range sysctls {
		// In a path it is the other way round than in a name.
		if err := writeProc("/proc/sys/"+swap(name), value); err != nil {
			return fmt.Errorf("set sysctl %s=%q: %w", name, value, err)
		}
	}
	return nil
}

func writeProc(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("this kernel has none: %w", errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	err = errors.Join(err, f.Close())
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return err
}
