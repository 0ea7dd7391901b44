package main

import (
	"fmt"
	"os"
	"strconv"

	"github.com/opencontainers/runc/libcontainer/exeseal"
	"golang.org/x/sys/unix"
)

// readyFD is where the daemon is told that the worker listens, if it is open.
const readyFD = 3

// lockFD is the daemon's lock on there being one worker. It is ours while we
// live, so no child may have it.
const lockFD = 4

// seal makes this process run from a sealed copy of its binary in memory, by
// executing itself again, and returns the descriptor to report to.
//
// A container must not be able to write to the binary that its first process
// executes (CVE-2019-5736), so libcontainer makes such a copy, or an overlay
// mount, for every process it starts, unless it already runs from one.
func seal() (ready *os.File, err error) {
	// The Go runtime opens all its descriptors close-on-exec.
	flags, err := unix.FcntlInt(readyFD, unix.F_GETFD, 0)
	inherited := err == nil && flags&unix.FD_CLOEXEC == 0
	if exeseal.IsSelfExeCloned() {
		unix.CloseOnExec(lockFD)
		if !inherited {
			return nil, nil
		}
		unix.CloseOnExec(readyFD)
		return os.NewFile(readyFD, "ready"), nil
	}
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, fmt.Errorf("seal binary: %w", err)
	}
	defer exe.Close()
	info, err := exe.Stat()
	if err != nil {
		return nil, fmt.Errorf("seal binary: %w", err)
	}
	sealed, err := exeseal.CloneBinary(exe, info.Size(), "kuasar-task", os.TempDir())
	if err != nil {
		return nil, fmt.Errorf("seal binary: %w", err)
	}
	if !exeseal.IsCloned(sealed) {
		return nil, fmt.Errorf("seal binary: this kernel has no sealed memory files (memfd_create, Linux 3.17)")
	}
	path := "/proc/self/fd/" + strconv.Itoa(int(sealed.Fd()))
	return nil, fmt.Errorf("execute sealed binary: %w", unix.Exec(path, os.Args, os.Environ()))
}
