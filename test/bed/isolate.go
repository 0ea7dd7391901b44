package bed

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// stage says in the environment which of the three processes this one is.
const (
	stage      = "KUASAR_BED_STAGE"
	stageInit  = "init"
	stageInner = "inner"
)

// Main is the TestMain of packages whose tests use a bed. Without root it
// runs the tests as they are; those that need a bed skip then.
func Main(m *testing.M) {
	if os.Geteuid() == 0 {
		if err := Isolate(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// Isolate returns in a process that is alone in its namespaces: it starts the
// program again there and, in the process that called it first, never
// returns but exits with that one's status. It must be the first thing main
// does, and it needs root.
func Isolate() error {
	switch os.Getenv(stage) {
	case stageInner:
		return os.Unsetenv(stage)
	case stageInit:
		status, err := initialize()
		if err != nil {
			return fmt.Errorf("isolate: %w", err)
		}
		os.Exit(status)
	}
	status, err := outer()
	if err != nil {
		return fmt.Errorf("isolate: %w", err)
	}
	os.Exit(status)
	return nil
}

// outer starts init in new namespaces, waits for it and removes its cgroup.
func outer() (int, error) {
	// Pdeathsig is sent when the thread ends that started the process.
	runtime.LockOSThread()
	// A terminal sends Ctrl-C to all three processes: the innermost cleans up
	// and ends, and so do the others.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	group := groupName(os.Getpid())
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), stage+"="+stageInit, groupVariable+"="+group)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL,
	}
	err := cmd.Run()
	if removeErr := removeGroup(group); removeErr != nil {
		return 1, removeErr
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// initialize is pid 1: it furnishes the namespaces, starts the program in
// them, and reaps what is reparented to it until the program ends.
func initialize() (int, error) {
	// Of the cgroup namespace only this thread and its children are members.
	runtime.LockOSThread()
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return 0, fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return 0, fmt.Errorf("mount /proc: %w", err)
	}
	if err := enterGroup(os.Getenv(groupVariable)); err != nil {
		return 0, err
	}
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return 0, fmt.Errorf("find loopback: %w", err)
	}
	if err := netlink.LinkSetUp(loopback); err != nil {
		return 0, fmt.Errorf("set loopback up: %w", err)
	}
	if err := os.Setenv(stage, stageInner); err != nil {
		return 0, err
	}
	signal.Reset(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	pid, err := syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{0, 1, 2},
	})
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", os.Args[0], err)
	}
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	status, err := reap(pid)
	// The kernel cannot end a frozen process, and waits for it.
	return status, errors.Join(err, thaw())
}

// reap waits for children until the one it is asked for ends.
func reap(pid int) (int, error) {
	for {
		var status syscall.WaitStatus
		got, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for pid %d: %w", pid, err)
		case got != pid:
		case status.Signaled():
			return 128 + int(status.Signal()), nil
		default:
			return status.ExitStatus(), nil
		}
	}
}
