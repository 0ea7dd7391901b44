package vmm

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"unsafe"

	"github.com/containerd/errdefs"
	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

const (
	vhostVsock = "/dev/vhost-vsock"

	// setGuestCID is VHOST_VSOCK_SET_GUEST_CID of linux/vhost.h:
	// _IOW(0xAF, 0x60, __u64).
	setGuestCID = 0x4008af60

	// firstCID is the first of a guest's; the last is below
	// VMADDR_CID_ANY (vsock(7)).
	firstCID = 3
	manyCIDs = unix.VMADDR_CID_ANY - firstCID

	// claimTries is far more than it takes, unless most of the ids are in use.
	claimTries = 64
)

// claim opens a vsock device with a context id that no other guest of this host
// has: the kernel sees to that for as long as the device is open.
func claim() (*os.File, uint32, error) {
	f, err := os.OpenFile(vhostVsock, os.O_RDWR, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: load the kernel's module vhost_vsock: %w", err, errdefs.ErrUnavailable)
	}
	for range claimTries {
		var b [8]byte
		if _, err := rand.Read(b[:]); err != nil {
			return nil, 0, errors.Join(err, f.Close())
		}
		cid := firstCID + binary.NativeEndian.Uint64(b[:])%manyCIDs
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), setGuestCID, uintptr(unsafe.Pointer(&cid)))
		switch errno {
		case 0:
			return f, uint32(cid), nil
		case unix.EADDRINUSE:
		default:
			return nil, 0, errors.Join(fmt.Errorf("claim a vsock context id: %w", errno), f.Close())
		}
	}
	return nil, 0, errors.Join(fmt.Errorf("claim a vsock context id: %d in a row are in use: %w", claimTries, errdefs.ErrResourceExhausted), f.Close())
}

// vhost is vsock by the kernel.
type vhost struct {
	cid uint32
	hub *hub
}

// Dial implements transport.
func (v vhost) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	// It cannot be canceled, but the kernel gives up after two seconds
	// (VSOCK_DEFAULT_CONNECT_TIMEOUT).
	c, err := vsock.Dial(v.cid, port, nil)
	if err == nil && ctx.Err() != nil {
		err = errors.Join(context.Cause(ctx), c.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("dial guest %d, port %d: %w: %w", v.cid, port, err, errdefs.ErrUnavailable)
	}
	return c, nil
}

// Listen implements transport.
func (v vhost) Listen(port uint32) (net.Listener, error) { return v.hub.listen(v.cid, port) }

// hub is ready to use. It gives what guests dial to those who wait for that guest: a port of the
// host is one for all of them.
type hub struct {
	bind func(port uint32) (net.Listener, error) // nil for vsock's

	mu    sync.Mutex
	ports map[uint32]*shared
}

// shared is a port that is listened on for some guests.
type shared struct {
	net.Listener
	guests map[uint32]*inbox // by context id
}

// inbox implements net.Listener for one guest.
type inbox struct {
	hub       *hub
	cid, port uint32
	conns     chan net.Conn
	closed    chan struct{}
	once      sync.Once
}

// inboxSize bounds the connections of a guest that nobody has accepted.
const inboxSize = 4

func listenVsock(port uint32) (net.Listener, error) {
	return vsock.ListenContextID(unix.VMADDR_CID_HOST, port, nil)
}

func (h *hub) listen(cid, port uint32) (net.Listener, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.ports[port]
	if s == nil {
		if h.ports == nil {
			h.ports = map[uint32]*shared{}
		}
		if h.bind == nil {
			h.bind = listenVsock
		}
		l, err := h.bind(port) // of a socket: it does not block
		if err != nil {
			return nil, fmt.Errorf("listen on vsock port %d: %w", port, err)
		}
		s = &shared{Listener: l, guests: map[uint32]*inbox{}}
		h.ports[port] = s
		go h.accept(s)
	}
	if s.guests[cid] != nil {
		return nil, fmt.Errorf("listen for guest %d on vsock port %d: %w", cid, port, errdefs.ErrAlreadyExists)
	}
	i := &inbox{hub: h, cid: cid, port: port, conns: make(chan net.Conn, inboxSize), closed: make(chan struct{})}
	s.guests[cid] = i
	return i, nil
}

// accept ends when the port's last guest does.
func (h *hub) accept(s *shared) {
	for {
		c, err := s.Accept()
		if err != nil {
			return
		}
		if !h.deliver(s, c) {
			c.Close()
		}
	}
}

// deliver is false for a guest that nobody waits for.
func (h *hub) deliver(s *shared, c net.Conn) bool {
	from, ok := c.RemoteAddr().(*vsock.Addr)
	if !ok {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	i := s.guests[from.ContextID]
	if i == nil {
		return false
	}
	select {
	case i.conns <- c:
		return true
	default:
		return false
	}
}

// Accept implements net.Listener.
func (i *inbox) Accept() (net.Conn, error) {
	select {
	case c := <-i.conns:
		return c, nil
	case <-i.closed:
		return nil, net.ErrClosed
	}
}

// Addr implements net.Listener.
func (i *inbox) Addr() net.Addr { return &vsock.Addr{ContextID: unix.VMADDR_CID_HOST, Port: i.port} }

// Close implements net.Listener.
func (i *inbox) Close() (err error) {
	i.once.Do(func() {
		close(i.closed)
		i.hub.mu.Lock()
		defer i.hub.mu.Unlock()
		s := i.hub.ports[i.port]
		if delete(s.guests, i.cid); len(s.guests) == 0 {
			delete(i.hub.ports, i.port)
			err = s.Close()
		}
		for len(i.conns) > 0 { // nobody delivers any more
			c := <-i.conns
			c.Close()
		}
	})
	return err
}
