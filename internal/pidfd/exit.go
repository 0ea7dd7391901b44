package pidfd

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

var (
	// ErrNoExitInfo means that this kernel does not tell strangers about
	// exits: PIDFD_INFO_EXIT came with Linux 6.15.
	ErrNoExitInfo = errors.New("the kernel does not tell the exit status of another's child: Linux 6.15 does")

	// ErrStillRunning means that the process lives, or waits as a zombie for
	// its parent.
	ErrStillRunning = errors.New("process was not reaped yet")
)

// UnknownStatus is the exit status of a process that nobody can tell it of.
const UnknownStatus = 255

// Exit says how a process ended.
type Exit struct {
	Status  uint32    // its exit code; 128 + n if signal n ended it
	At      time.Time // when we learned of it
	Unknown string    // why Status is not the process's own but UnknownStatus
}

// newExit takes the time: it is called when the exit becomes known.
func newExit(ws unix.WaitStatus) Exit {
	status := uint32(ws.ExitStatus())
	if ws.Signaled() {
		status = 128 + uint32(ws.Signal())
	}
	return Exit{Status: status, At: time.Now()}
}

func unknownExit(err error) Exit {
	return Exit{Status: UnknownStatus, At: time.Now(), Unknown: err.Error()}
}

// ExitInfo asks the kernel how a reaped process ended, whoever's child it was.
// f must have been open when it was reaped.
func ExitInfo(f *os.File) (ws unix.WaitStatus, err error) {
	err = with(f, func(fd int) error {
		ws, err = exitInfo(fd)
		return err
	})
	return ws, err
}

func exitInfo(fd int) (unix.WaitStatus, error) {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	err := unix.IoctlPidfdInfo(fd, &info)
	switch {
	case err == unix.ENOTTY || err == unix.EINVAL: // before 6.13
		return 0, ErrNoExitInfo
	case err == unix.ESRCH: // reaped, on 6.13 and 6.14
		return 0, ErrNoExitInfo
	case err != nil:
		return 0, fmt.Errorf("ask for exit status: %w", err)
	case info.Mask&unix.PIDFD_INFO_EXIT == 0:
		return 0, ErrStillRunning
	}
	return unix.WaitStatus(info.Exit_code), nil
}

// zombieStatus reads the exit status of a process that exited and was not
// reaped yet from /proc. ok is false if that is not what fd is, or if /proc
// would not say.
func zombieStatus(fd int) (ws unix.WaitStatus, ok bool) {
	pid, err := Pid(fd)
	if err != nil || pid <= 0 {
		return 0, false
	}
	// The exit code reads as 0 without ptrace access. This link needs the
	// same access and gives an error.
	if _, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/user"); err != nil {
		return 0, false
	}
	s, err := readStat(pid)
	if err != nil || s.state != 'Z' {
		return 0, false
	}
	// If it still is not reaped, all of this was about it and no other.
	if unix.PidfdSendSignal(fd, 0, nil, 0) != nil {
		return 0, false
	}
	return s.exit, true
}

// child is the part of siginfo_t that waitid(2) fills. The union in it is
// aligned to pointers.
type child struct {
	signo, errno, code int32
	_                  [unsafe.Sizeof(uintptr(0))/4 - 1]int32
	pid                int32
	uid                uint32
	status             int32
}

// wait is waitid(2) with WEXITED, without blocking. A pid of 0 in the result
// says that no such child has exited.
func wait(idType, id, options int) (child, error) {
	var info unix.Siginfo
	for {
		err := unix.Waitid(idType, id, &info, unix.WEXITED|unix.WNOHANG|options, nil)
		if err == unix.EINTR {
			continue
		}
		return *(*child)(unsafe.Pointer(&info)), err
	}
}

// waitStatus undoes what the kernel did to the status for siginfo_t.
func (c child) waitStatus() unix.WaitStatus {
	const exited, dumped, coreFlag = 1, 3, 0x80 // CLD_EXITED, CLD_DUMPED of sigaction(2); wait(2)
	switch c.code {
	case exited:
		return unix.WaitStatus(c.status << 8)
	case dumped:
		return unix.WaitStatus(c.status | coreFlag)
	default:
		return unix.WaitStatus(c.status)
	}
}
