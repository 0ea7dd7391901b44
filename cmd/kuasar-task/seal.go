package main

import (
	"errors"
	"os"
	"strconv"

	"github.com/containerd/log"
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
// mount, for every process it starts, unless it already runs from one. Where
// there can be none it goes on doing so.
func seal() (ready *os.File) {
	if !exeseal.IsSelfExeCloned() {
		if err := again(); err != nil {
			log.L.WithError(err).Warn("cannot run from a sealed copy: each start of a process makes its own")
		}
	}
	name()
	// The Go runtime opens all its descriptors close-on-exec.
	flags, err := unix.FcntlInt(readyFD, unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC != 0 {
		return nil
	}
	unix.CloseOnExec(readyFD)
	return os.NewFile(readyFD, "ready")
}

// name is for ps: the kernel names a process after the path that it executed,
// which is a descriptor's number here.
func name() {
	if err := os.WriteFile("/proc/self/comm", []byte("kuasar-task"), 0); err != nil {
		log.L.WithError(err).Debug("the process keeps its name")
	}
}

// again does not return if all goes well.
func again() error {
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer exe.Close()
	info, err := exe.Stat()
	if err != nil {
		return err
	}
	sealed, err := exeseal.CloneBinary(exe, info.Size(), "kuasar-task", os.TempDir())
	if err != nil {
		return err
	}
	defer sealed.Close()
	if !exeseal.IsCloned(sealed) {
		return errors.New("no executable memory files: see vm.memfd_noexec")
	}
	return unix.Exec("/proc/self/fd/"+strconv.Itoa(int(sealed.Fd())), os.Args, os.Environ())
}
