// Package epoll waits for many file descriptors in one goroutine and no
// thread: the epoll descriptor is itself watched by Go's own poller. Package
// os would spend a goroutine on each descriptor.
package epoll

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Poll is an epoll instance. All methods are safe for concurrent use, but one
// goroutine at a time may Wait.
type Poll struct {
	file *os.File
	conn syscall.RawConn
}

// Event is what happened to a descriptor.
type Event struct {
	Events uint32 // EPOLLIN and so on
	Key    uint64 // as given to Add
}

// New makes an empty instance.
func New() (*Poll, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make epoll instance: %w", err)
	}
	// The flag means nothing to the kernel here; it tells package os to poll.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make epoll instance: %w", err)
	}
	file := os.NewFile(uintptr(fd), "epoll")
	conn, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("make epoll instance: %w", err)
	}
	return &Poll{file: file, conn: conn}, nil
}

// Add watches fd; what happens to it is reported with key.
func (p *Poll) Add(fd int, events uint32, key uint64) error {
	return p.ctl(unix.EPOLL_CTL_ADD, fd, events, key)
}

// Modify changes what is watched.
func (p *Poll) Modify(fd int, events uint32, key uint64) error {
	return p.ctl(unix.EPOLL_CTL_MOD, fd, events, key)
}

// Remove ends the watch. Do it before fd is closed: a duplicate elsewhere
// would keep it going. Events may already be with the one who waits.
func (p *Poll) Remove(fd int) error {
	return p.ctl(unix.EPOLL_CTL_DEL, fd, 0, 0)
}

func (p *Poll) ctl(op, fd int, events uint32, key uint64) error {
	e := unix.EpollEvent{Events: events, Fd: int32(key), Pad: int32(key >> 32)}
	var err error
	if cerr := p.conn.Control(func(epfd uintptr) { err = unix.EpollCtl(int(epfd), op, fd, &e) }); cerr != nil {
		return os.ErrClosed // package os has an error of its own for it, and does not export it
	}
	return err
}

// Wait blocks until something happened and appends it to events[:0], at most
// cap(events) of it. After Close it returns os.ErrClosed.
func (p *Poll) Wait(events []Event) ([]Event, error) {
	var raw [32]unix.EpollEvent
	limit := min(len(raw), max(cap(events), 1))
	var n int
	var err error
	rerr := p.conn.Read(func(epfd uintptr) bool {
		for {
			n, err = unix.EpollWait(int(epfd), raw[:limit], 0)
			if err != unix.EINTR {
				return n != 0 || err != nil
			}
		}
	})
	if rerr != nil {
		return nil, fmt.Errorf("wait for epoll events: %w", os.ErrClosed)
	}
	if err != nil {
		return nil, fmt.Errorf("wait for epoll events: %w", err)
	}
	events = events[:0]
	for _, e := range raw[:n] {
		events = append(events, Event{Events: e.Events, Key: uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32})
	}
	return events, nil
}

// Close ends a Wait under way. Descriptors watched stay open.
func (p *Poll) Close() error { return p.file.Close() }
