package forward

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// offered offers a port of the guest on another loopback address than the
// guest's, and returns that.
func offered(t *testing.T, ctx context.Context, port uint16, wrap func(net.Listener) net.Listener) (address string, done chan struct{}) {
	t.Helper()
	address = net.JoinHostPort("127.0.0.2", strconv.Itoa(int(port)))
	l, err := net.Listen("tcp4", address)
	if err != nil {
		t.Skip("no second loopback address: ", err)
	}
	done = make(chan struct{})
	dial := guest(t)
	go func() {
		defer close(done)
		Offer(ctx, wrap(l), dial)
	}()
	return address, done
}

func same(l net.Listener) net.Listener { return l }

func TestOffer(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	address, done := offered(t, ctx, server(t, "tcp4", "127.0.0.1:0"), same)
	for range 3 {
		if got, err := echo(t, address); got != "hello" || err != nil {
			t.Errorf("echo %q, %v", got, err)
		}
	}
	open, err := net.Dial("tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if _, err := open.Write([]byte("some")); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-done // which the open connection does not delay
	if c, err := net.Dial("tcp4", address); err == nil {
		c.Close()
		t.Error("it listens after the end")
	}
}

// A port without a server is a reset.
func TestOfferNobody(t *testing.T) {
	address, _ := offered(t, t.Context(), closed(t), same)
	if got, err := echo(t, address); err == nil {
		t.Errorf("%q comes from nobody", got)
	}
}

// A host without descriptors has some again later.
func TestOfferAgain(t *testing.T) {
	address, _ := offered(t, t.Context(), server(t, "tcp4", "127.0.0.1:0"), func(l net.Listener) net.Listener { return &poor{Listener: l} })
	if got, err := echo(t, address); got != "hello" || err != nil {
		t.Errorf("echo %q, %v", got, err)
	}
}

// poor has no descriptors for the first two connections.
type poor struct {
	net.Listener
	failed atomic.Int32
}

func (p *poor) Accept() (net.Conn, error) {
	if p.failed.Add(1) <= 2 {
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return p.Listener.Accept()
}

// closed is a port of this host that nobody listens on.
func closed(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func echo(t *testing.T, address string) (string, error) {
	t.Helper()
	c, err := net.Dial("tcp4", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err = c.Write([]byte("hello"))
	err = errors.Join(err, c.(*net.TCPConn).CloseWrite())
	b, readErr := io.ReadAll(c)
	return string(b), errors.Join(err, readErr)
}
