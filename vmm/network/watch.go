package network

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Watch tells when a pod's network changes: CRI implementations that start the
// sandbox first, such as iSulad, add its interfaces later.
type Watch struct {
	socket *os.File
	done   chan struct{}
}

// groups of rtnetlink(7) that say so, as bits.
const groups = 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_NEIGH-1) |
	1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1) |
	1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1)

// NewWatch calls changed when interfaces, addresses, routes or neighbours of
// the namespace at path may have changed since it returned; Scan tells how.
// Calls come one at a time, and one may stand for many changes. The caller
// closes the watch, which costs a goroutine and a socket.
func NewWatch(netns string, changed func()) (*Watch, error) {
	w := &Watch{done: make(chan struct{})}
	err := inside(netns, func(*netlink.Handle) (err error) {
		w.socket, err = subscribe()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("watch network of %s: %w", netns, err)
	}
	go func() {
		defer close(w.done)
		for w.next() {
			changed()
		}
	}()
	return w, nil
}

func subscribe() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// next waits for a change, and takes what came with it. What got lost because
// the socket was full (ENOBUFS) is a change as well.
func (w *Watch) next() bool {
	raw, err := w.socket.SyscallConn()
	if err != nil {
		return false
	}
	var broken error
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte // what it says does not matter
		for some := false; ; some = true {
			switch _, _, err := unix.Recvfrom(int(fd), b[:], 0); err {
			case nil, unix.ENOBUFS, unix.EINTR:
			case unix.EAGAIN:
				return some
			default:
				broken = err
				return true
			}
		}
	})
	return err == nil && broken == nil
}

// Close ends the watch and returns after the last call of changed, which must
// not call it.
func (w *Watch) Close() error {
	err := w.socket.Close()
	<-w.done
	return err
}
