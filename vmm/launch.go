package vmm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
)

var (
	fpFork   = failpoint.New("vmm/launch/fork")
	fpAdmit  = failpoint.New("vmm/launch/admit")
	fpDetach = failpoint.New("vmm/launch/detach")
)

// Command is a process to launch.
type Command struct {
	Args []string // Args[0] is the path of the program

	// Files are its descriptors from 3 on. The caller closes them.
	Files []*os.File
}

// launch runs a command that is not to run before admit has returned: it is
// stopped at its first instruction, and dies there if admit fails or this
// process dies. So no process is ever lost that is not recorded: admit records
// it, and puts it where it belongs.
//
// It is ptrace(2) that stops it. A tracee whose tracer has gone before it was
// detached dies: of PTRACE_O_EXITKILL, or before that is set of the SIGTRAP
// that its exec gave it.
//
// The process is started in the network namespace at netns, empty for ours.
func launch(c Command, netns string, log *os.File, admit func(Process) error) error {
	done := make(chan error, 1)
	go func() {
		// The tracer is a thread, and this one is not to be used again: it ends
		// with the goroutine.
		runtime.LockOSThread()
		done <- trace(c, netns, log, admit)
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("launch %s: %w", c.Args[0], err)
	}
	return nil
}

func trace(c Command, netns string, log *os.File, admit func(Process) error) error {
	if netns != "" {
		f, err := os.Open(netns)
		if err != nil {
			return fmt.Errorf("open network namespace: %w", err)
		}
		defer f.Close()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter %s: %w", netns, err)
		}
	}
	pid, err := fork(c, log)
	if err != nil {
		return err
	}
	fpFork.Hit()
	if err := held(pid, admit); err != nil {
		return errors.Join(err, discard(pid))
	}
	fpAdmit.Hit()
	if err := unix.PtraceDetach(pid); err != nil {
		return errors.Join(fmt.Errorf("detach: %w", err), discard(pid))
	}
	fpDetach.Hit()
	return nil
}

// fork starts the program in a session of its own, with an environment that
// has nothing of the daemon's.
func fork(c Command, log *os.File) (int, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	p, err := os.StartProcess(c.Args[0], c.Args, &os.ProcAttr{
		Dir:   "/",
		Env:   slices.DeleteFunc(os.Environ(), func(s string) bool { return !strings.HasPrefix(s, "PATH=") }),
		Files: append([]*os.File{null, log, log}, c.Files...),
		Sys:   &syscall.SysProcAttr{Setsid: true, Ptrace: true},
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	case err != nil:
		return 0, err
	}
	pid := p.Pid // Release forgets it
	return pid, p.Release()
}

// held has the stopped process admitted.
func held(pid int, admit func(Process) error) error {
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &ws, unix.WALL, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for its exec: %w", err)
		}
		break
	}
	if !ws.Stopped() {
		return fmt.Errorf("it ended at once: %#x: %w", uint32(ws), errdefs.ErrFailedPrecondition)
	}
	if err := unix.PtraceSetOptions(pid, unix.PTRACE_O_EXITKILL); err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	start, err := pidfd.StartTime(pid)
	if err != nil {
		return err
	}
	return admit(Process{Pid: pid, Start: start})
}

// discard ends a process that is ours and that nobody follows.
func discard(pid int) error {
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return err
	}
	for {
		_, err := unix.Wait4(pid, nil, unix.WALL, nil)
		if err == unix.EINTR {
			continue
		}
		if err == unix.ECHILD { // somebody follows it after all
			return nil
		}
		return err
	}
}
