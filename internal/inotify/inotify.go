// Package inotify is inotify(7) for those who have an epoll loop of their own.
package inotify

import (
	"encoding/binary"
	"fmt"
	"iter"
	"os"

	"golang.org/x/sys/unix"
)

// Instance is an inotify instance. Safe for concurrent use; Close it after the
// last use.
type Instance struct{ fd int }

// New makes an instance without watches.
func New() (*Instance, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make inotify instance: %w", err)
	}
	return &Instance{fd}, nil
}

// Fd is for epoll; it is readable when there are events.
func (i *Instance) Fd() int { return i.fd }

// Add watches the file at path. There is one watch for a file: adding it again
// returns the same one. Watches are not numbered twice.
func (i *Instance) Add(path string, mask uint32) (watch int32, err error) {
	for {
		wd, err := unix.InotifyAddWatch(i.fd, path, mask)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return -1, &os.PathError{Op: "watch", Path: path, Err: err}
		}
		return int32(wd), nil
	}
}

// Remove ends a watch; events may already be on their way.
func (i *Instance) Remove(watch int32) { _, _ = unix.InotifyRmWatch(i.fd, uint32(watch)) }

// Read yields the watch and the mask of all events there are now. buf is used
// for them.
func (i *Instance) Read(buf []byte) iter.Seq2[int32, uint32] {
	return func(yield func(int32, uint32) bool) {
		for {
			n, err := unix.Read(i.fd, buf)
			if err == unix.EINTR {
				continue
			}
			if err != nil || n <= 0 {
				return
			}
			for watch, mask := range records(buf[:n]) {
				if !yield(watch, mask) {
					return
				}
			}
		}
	}
}

// Close ends all watches.
func (i *Instance) Close() error { return unix.Close(i.fd) }

func records(b []byte) iter.Seq2[int32, uint32] {
	return func(yield func(int32, uint32) bool) {
		for len(b) >= unix.SizeofInotifyEvent {
			watch := int32(binary.NativeEndian.Uint32(b))
			mask := binary.NativeEndian.Uint32(b[4:])
			size := unix.SizeofInotifyEvent + uint64(binary.NativeEndian.Uint32(b[12:])) // with the name
			if !yield(watch, mask) || size > uint64(len(b)) {
				return
			}
			b = b[size:]
		}
	}
}
