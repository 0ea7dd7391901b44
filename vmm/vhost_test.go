package vmm

import (
	"errors"
	"net"
	"os"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/mdlayher/vsock"
)

// dialed is a connection from a guest.
type dialed struct {
	net.Conn
	cid uint32
}

func (d dialed) RemoteAddr() net.Addr { return &vsock.Addr{ContextID: d.cid, Port: 5000} }

// exchange is a port of the host that a test dials as any guest.
type exchange struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (e *exchange) Accept() (net.Conn, error) {
	select {
	case c := <-e.conns:
		return c, nil
	case <-e.closed:
		return nil, net.ErrClosed
	}
}
func (e *exchange) Close() error   { close(e.closed); return nil }
func (e *exchange) Addr() net.Addr { return nil }

// dial returns the guest's end.
func (e *exchange) dial(cid uint32) net.Conn {
	host, guest := net.Pipe()
	e.conns <- dialed{host, cid}
	return guest
}

func TestHub(t *testing.T) {
	var bound []*exchange
	h := &hub{bind: func(uint32) (net.Listener, error) {
		bound = append(bound, &exchange{make(chan net.Conn), make(chan struct{})})
		return bound[len(bound)-1], nil
	}}
	three, err := h.listen(3, 1024)
	if err != nil {
		t.Fatal(err)
	}
	four, err := h.listen(4, 1024)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.listen(4, 1024); !errdefs.IsAlreadyExists(err) {
		t.Errorf("twice for a guest: %v", err)
	}
	if len(bound) != 1 {
		t.Fatalf("port was bound %d times", len(bound))
	}
	port := bound[0]
	// Nobody waits for guest 5, and guest 3's go to nobody else.
	stranger := port.dial(5)
	if _, err := stranger.Read(make([]byte, 1)); err == nil {
		t.Error("a stranger is listened to")
	}
	port.dial(4)
	port.dial(3)
	for cid, l := range map[uint32]net.Listener{3: three, 4: four} {
		c, err := l.Accept()
		if err != nil || c.RemoteAddr().(*vsock.Addr).ContextID != cid {
			t.Errorf("guest %d: %v, %v", cid, c, err)
		}
	}
	// A guest that dials and dials is no burden.
	for range inboxSize {
		port.dial(3)
	}
	if _, err := port.dial(3).Read(make([]byte, 1)); err == nil {
		t.Error("connections without end are kept")
	}
	waiting := port.dial(4)
	for _, l := range []net.Listener{three, four, four} {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := waiting.Read(make([]byte, 1)); err == nil {
		t.Error("a connection that nobody takes stays")
	}
	if _, err := three.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
	select {
	case <-port.closed:
	default:
		t.Error("the port stays bound")
	}
	if _, err := h.listen(3, 1024); err != nil || len(bound) != 2 {
		t.Errorf("again: %v", err)
	}
}

// No two guests have the same context id.
func TestClaim(t *testing.T) {
	if _, err := os.Stat(vhostVsock); err != nil {
		t.Skip(err)
	}
	seen := map[uint32]bool{}
	for range 8 {
		f, cid, err := claim()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if seen[cid] || cid < firstCID {
			t.Errorf("context id %d", cid)
		}
		seen[cid] = true
	}
}
