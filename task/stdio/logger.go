package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
)

// Variables for tests.
var (
	// loggerTime is what a program has to finish after its input ended, and
	// then after SIGTERM: twelve seconds in all, as containerd's shim grants
	// it.
	loggerTime = 10 * time.Second
	loggerTerm = 2 * time.Second
)

// logger is a program that takes a process's output: at its descriptors 3 and
// 4 are stdout and stderr, and by 5 it says that it is ready.
type logger struct {
	name   string
	reaper *pidfd.Reaper
	pidfd  *os.File
	exited chan struct{}

	stdout, stderr *os.File // write ends not yet taken
}

func (h *Host) startLogger(ctx context.Context, cfg Config, t target) (*logger, error) {
	l := &logger{name: t.path, reaper: h.reaper, exited: make(chan struct{})}
	var theirs [3]*os.File
	defer func() {
		for _, f := range theirs {
			closeFile(f)
		}
	}()
	var ready *os.File
	var err [3]error
	theirs[0], l.stdout, err[0] = blockingPipe()
	theirs[1], l.stderr, err[1] = blockingPipe()
	ready, theirs[2], err[2] = blockingPipe()
	defer closeFile(ready)

	e := errors.Join(err[:]...)
	if e == nil {
		cmd := exec.Command(t.path, t.args...)
		cmd.Env = []string{"CONTAINER_ID=" + cfg.Container, "CONTAINER_NAMESPACE=" + cfg.Namespace}
		cmd.ExtraFiles = theirs[:]
		e = l.start(cmd)
	}
	if e == nil {
		closeFile(theirs[2])
		e = awaitReady(ctx, ready, t.strict)
	}
	if e != nil {
		l.kill()
		return nil, fmt.Errorf("start logging program %s: %w", t.path, e)
	}
	return l, nil
}

// blockingPipe is what os.Pipe would be for programs other than Go's.
func blockingPipe() (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// start leaves the program to the reaper.
func (l *logger) start(cmd *exec.Cmd) error {
	end := l.reaper.Begin()
	defer end()
	if err := cmd.Start(); err != nil {
		return err
	}
	f, err := pidfd.Open(cmd.Process.Pid, 0)
	if err == nil {
		err = l.reaper.Follow(f, func(pidfd.Exit) { close(l.exited) })
	}
	if err != nil {
		return errors.Join(err, closeFile(f), cmd.Process.Kill(), cmd.Wait())
	}
	l.pidfd = f
	return cmd.Process.Release()
}

func awaitReady(ctx context.Context, ready *os.File, strict bool) error {
	fd, err := unix.FcntlInt(ready.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil { // for the deadline
		unix.Close(fd)
		return err
	}
	f := os.NewFile(uintptr(fd), ready.Name())
	defer f.Close()
	defer context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })()
	n, err := f.Read(make([]byte, 1))
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("wait until it is ready: %w", context.Cause(ctx))
	case err != nil && err != io.EOF:
		return fmt.Errorf("wait until it is ready: %w", err)
	case n == 0 && strict:
		return fmt.Errorf("it ended, or closed descriptor 5, without a word that it is ready: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

// take gives a write end away.
func take(f **os.File) (int, error) {
	defer func() { closeFile(*f); *f = nil }()
	return unix.FcntlInt((*f).Fd(), unix.F_DUPFD_CLOEXEC, 0)
}

// untaken closes the write ends that were not taken.
func (l *logger) untaken() {
	closeFile(l.stdout)
	closeFile(l.stderr)
	l.stdout, l.stderr = nil, nil
}

// finish waits until the program has ended, as it should with its input, and
// sees to it that it does.
func (l *logger) finish() error {
	l.untaken()
	defer l.pidfd.Close()
	err := l.wait(loggerTime)
	if err == nil {
		return nil
	}
	_ = pidfd.Signal(l.pidfd, unix.SIGTERM)
	if l.wait(loggerTerm) != nil {
		_ = pidfd.Signal(l.pidfd, unix.SIGKILL)
		<-l.exited
	}
	return err
}

func (l *logger) wait(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-l.exited:
		return nil
	case <-timer.C:
		return fmt.Errorf("logging program %s did not end within %s of its input: %w", l.name, d, context.DeadlineExceeded)
	}
}

// kill cleans up after a start that did not succeed.
func (l *logger) kill() {
	l.untaken()
	if l.pidfd != nil {
		_ = pidfd.Signal(l.pidfd, unix.SIGKILL)
		<-l.exited
		l.pidfd.Close()
	}
}
