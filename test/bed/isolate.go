package bed

import (
	"errors"
	"fmt"
	"io/fs"
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

// outer starts init in new namespaces, waits for it, and removes what is left
// outside of them: a cgroup and a directory for temporary files.
func outer() (int, error) {
	// Pdeathsig is sent when the thread ends that started the process.
	runtime.LockOSThread()
	dir, err := os.MkdirTemp("", "k")
	if err != nil {
		return 0, err
	}
	if err := os.Chmod(dir, fs.ModeSticky|0o777); err != nil {
		return 0, err
	}
	group := groupName(os.Getpid())
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), stage+"="+stageInit, groupVariable+"="+group, "TMPDIR="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL,
	}
	if !Systemd() {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWPID
	}
	err = cmd.Start()
	if err == nil {
		defer relay(cmd.Process.Pid)()
		err = cmd.Wait()
	}
	if err := errors.Join(removeGroup(group), os.RemoveAll(dir)); err != nil {
		return 1, err
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
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return 0, fmt.Errorf("make mounts private: %w", err)
	}
	if err := enter(); err != nil {
		return 0, err
	}
	if err := connect(); err != nil {
		return 0, err
	}
	if err := os.Setenv(stage, stageInner); err != nil {
		return 0, err
	}
	pid, err := syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{0, 1, 2},
	})
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", os.Args[0], err)
	}
	defer relay(pid)()
	status, err := reap(pid)
	// The kernel cannot end a frozen process, and waits for it.
	return status, errors.Join(err, thaw())
}

// enter makes the pid and cgroup namespaces usable, where there are any.
func enter() error {
	if Systemd() {
		return adopt()
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return enterGroup(os.Getenv(groupVariable))
}

// connect makes the network namespace one of a node.
func connect() error {
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := netlink.LinkSetUp(loopback); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	// Else the bridge would use its IPv6 address only after some seconds in
	// which it looks for others that have the same.
	for _, scope := range []string{"all", "default"} {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+scope+"/accept_dad", []byte("0"), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// relay passes on to a child what asks this process to end, which itself ends
// after the child. A terminal's Ctrl-C is not passed on: all of them get it.
func relay(pid int) (stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		for s := range signals {
			if s != syscall.SIGINT {
				_ = syscall.Kill(pid, s.(syscall.Signal)) // it may have ended
			}
		}
	}()
	return func() { signal.Stop(signals) }
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
