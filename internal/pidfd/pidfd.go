// Package pidfd names processes by file descriptors, which unlike their
// numbers are never used again, and learns how they ended.
//
// An exit status is the parent's alone to collect. A process whose parent has
// died is adopted by a stranger, so the status comes from the kernel's record
// of the pidfd instead (PIDFD_GET_INFO, Linux 6.15), or from /proc as long as
// the stranger has not collected it.
package pidfd

import (
	"errors"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

var (
	// ErrNoExitInfo means that this kernel does not tell strangers about
	// exits: PIDFD_INFO_EXIT came with Linux 6.15.
	ErrNoExitInfo = errors.New("the kernel cannot tell the exit status of another's child: Linux 6.15 or later can")

	// ErrStillRunning means that the process lives, or waits as a zombie for
	// its parent.
	ErrStillRunning = errors.New("process has not been reaped")
)

// Open opens pid.
func Open(pid int, start uint64) (*os.File, error) { return nil, errdefs.ErrNotImplemented }

// StartTime of pid.
func StartTime(pid int) (uint64, error) { return 0, errdefs.ErrNotImplemented }

// Signal sends sig.
func Signal(f *os.File, sig unix.Signal) error { return errdefs.ErrNotImplemented }

// Running says whether the process lives.
func Running(f *os.File) (bool, error) { return false, errdefs.ErrNotImplemented }

// ExitInfo asks the kernel.
func ExitInfo(f *os.File) (unix.WaitStatus, error) { return 0, errdefs.ErrNotImplemented }

// Exit says how a process ended.
type Exit struct {
	Status  uint32
	At      time.Time
	Unknown string
}

// Reaper follows processes.
type Reaper struct{}

// NewReaper starts one.
func NewReaper() (*Reaper, error) { return &Reaper{}, nil }

// Follow calls done.
func (r *Reaper) Follow(f *os.File, done func(Exit)) error { return errdefs.ErrNotImplemented }

// Unfollow forgets f.
func (r *Reaper) Unfollow(f *os.File) {}

// Sweep reaps orphans.
func (r *Reaper) Sweep() error { return errdefs.ErrNotImplemented }

// Begin guards children in the making.
func (r *Reaper) Begin() (end func()) { return func() {} }

// Close ends the reaper.
func (r *Reaper) Close() error { return nil }
