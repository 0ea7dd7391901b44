package container

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"
)

// classes maps what libcontainer says to what clients of the Task API act on.
var classes = []struct{ err, class error }{
	{libcontainer.ErrNotExist, errdefs.ErrNotFound},
	{libcontainer.ErrNotRunning, errdefs.ErrNotFound},
	{libcontainer.ErrCgroupNotExist, errdefs.ErrNotFound},
	{libcontainer.ErrExist, errdefs.ErrAlreadyExists},
	{libcontainer.ErrInvalidID, errdefs.ErrInvalidArgument},
	{libcontainer.ErrPaused, errdefs.ErrFailedPrecondition},
	{libcontainer.ErrNotPaused, errdefs.ErrFailedPrecondition},
	{libcontainer.ErrRunning, errdefs.ErrFailedPrecondition},
}

// remedies are for errors of the kernel that come out of the container's
// setup and do not explain themselves.
var remedies = []struct {
	err  error
	text string
}{
	{unix.ENOSPC, "a disk, or a limit of the kernel such as fs.inotify.max_user_instances or user.max_mnt_namespaces, is full"},
	{unix.EMFILE, "raise the agent's limit of open files"},
	{unix.ENFILE, "raise fs.file-max"},
	{unix.EAGAIN, "the limit of processes is reached: raise pids.max of the agent's cgroup or kernel.pid_max"},
}

func class(err error) error {
	for _, c := range classes {
		if errors.Is(err, c.err) {
			return fmt.Errorf("%w: %w", err, c.class)
		}
	}
	for _, r := range remedies {
		if errors.Is(err, r.err) {
			return fmt.Errorf("%w (%s): %w", err, r.text, errdefs.ErrResourceExhausted)
		}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	return err
}

func invalid(format string, a ...any) error {
	return fmt.Errorf(format+": %w", append(a, errdefs.ErrInvalidArgument)...)
}
