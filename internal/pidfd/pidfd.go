// Package pidfd names processes by file descriptors, which unlike their
// numbers never come to mean another process, and learns how they ended.
//
// An exit status is the parent's to collect. A process whose parent died is
// adopted by a stranger; its status then comes from what the kernel keeps with
// the pidfd (PIDFD_GET_INFO, Linux 6.15), or from /proc for as long as the
// stranger has not collected it.
package pidfd

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Open opens the process that has pid now, and refuses it if it did not start
// at start, in the unit of StartTime: then the number was used again. 0 skips
// the check. A process that is gone or another one is errdefs.ErrNotFound; one
// that exited and was not reaped can be opened.
func Open(pid int, start uint64) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, class(err))
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	if start == 0 {
		return f, nil
	}
	if err := same(f, pid, start); err != nil {
		f.Close()
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return f, nil
}

// same checks that f's process started at start. What /proc says is about f's
// process if that was not reaped until afterwards.
func same(f *os.File, pid int, start uint64) error {
	s, err := readStat(pid)
	if err != nil {
		return err
	}
	if s.start != start {
		return fmt.Errorf("it started at tick %d, the one sought at %d: %w", s.start, start, errdefs.ErrNotFound)
	}
	return Signal(f, 0)
}

// StartTime is when pid started, in clock ticks since boot: field 22 of
// proc_pid_stat(5). With the pid it names a process for the time of one boot.
func StartTime(pid int) (uint64, error) {
	s, err := readStat(pid)
	if err != nil {
		return 0, fmt.Errorf("start time of process %d: %w", pid, err)
	}
	return s.start, nil
}

// Signal sends sig; 0 only checks. errdefs.ErrNotFound says that the process
// was reaped. A zombie takes every signal and nothing happens.
func Signal(f *os.File, sig unix.Signal) error {
	return with(f, func(fd int) error {
		if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil {
			return fmt.Errorf("send signal %d: %w", int(sig), class(err))
		}
		return nil
	})
}

// Running is false once the process exited, reaped or not.
func Running(f *os.File) (running bool, err error) {
	err = with(f, func(fd int) error {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			n, err := unix.Poll(fds, 0)
			if err == unix.EINTR {
				continue
			}
			if err == nil && n > 0 && fds[0].Revents&unix.POLLNVAL != 0 {
				err = unix.EBADF
			}
			if err != nil {
				return fmt.Errorf("poll process: %w", err)
			}
			running = n == 0
			return nil
		}
	})
	return running, err
}

// with keeps the descriptor from being closed, and its number from coming to
// mean another one, while do uses it.
func with(f *os.File, do func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := conn.Control(func(fd uintptr) { err = do(int(fd)) })
	return errors.Join(cerr, err)
}

func class(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	return err
}
