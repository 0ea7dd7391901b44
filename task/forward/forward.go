// Package forward carries connections to ports of a guest's localhost, which is
// what port forwarding of CRI means, over the guest's vsock. Both ends are here.
//
// The host dials Port and sends the TCP port, two bytes in network order. The
// guest answers with one byte: 0 if it is connected, else 1. Then it is a plain
// stream both ways, each closed on its own.
package forward

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// Port of the guest's vsock.
	Port = 1027

	// Limit of connections that a guest serves at a time; more wait.
	Limit = 128

	// wait bounds the first exchange: the guest connects to itself.
	wait = 10 * time.Second

	// chunk is what is written at once: larger writes stall some vsock devices.
	chunk = 16 << 10

	connected, refused = 0, 1
)

// Serve answers all that l takes, until it is closed, and returns when the last
// connection has ended. It is the guest's end.
func Serve(l net.Listener) error {
	var all sync.WaitGroup
	defer all.Wait()
	free := make(chan struct{}, Limit)
	for {
		free <- struct{}{}
		c, err := l.Accept()
		if err != nil {
			return fmt.Errorf("forward ports: %w", err)
		}
		all.Go(func() {
			defer func() { <-free }()
			defer c.Close()
			serve(c)
		})
	}
}

func serve(c net.Conn) {
	var port [2]byte
	if c.SetDeadline(time.Now().Add(wait)) != nil {
		return
	}
	if _, err := io.ReadFull(c, port[:]); err != nil {
		return
	}
	to, err := connect(binary.BigEndian.Uint16(port[:]))
	if err != nil {
		_, _ = c.Write([]byte{refused})
		return
	}
	defer to.Close()
	if _, err := c.Write([]byte{connected}); err != nil || c.SetDeadline(time.Time{}) != nil {
		return
	}
	join(c, to)
}

// connect dials this host. Servers listen on either loopback address.
func connect(port uint16) (net.Conn, error) {
	d := net.Dialer{Timeout: wait / 4}
	number := strconv.Itoa(int(port))
	c, err := d.Dial("tcp4", net.JoinHostPort("127.0.0.1", number))
	if err == nil {
		return c, nil
	}
	c, second := d.Dial("tcp6", net.JoinHostPort("::1", number))
	if second != nil {
		return nil, errors.Join(err, second)
	}
	return c, nil
}

// Pass carries one connection of the host to a port of the guest, which dial
// reaches at Port. It owns c and returns when both directions have ended. A port
// that nobody listens on resets c and is errdefs.ErrUnavailable.
func Pass(ctx context.Context, c *net.TCPConn, port uint16, dial Dial) error {
	defer c.Close()
	to, err := dial(ctx)
	if err == nil {
		defer to.Close()
		err = ask(to, port)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("forward to port %d: %w", port, err), c.SetLinger(0))
	}
	join(c, to)
	return nil
}

func ask(to net.Conn, port uint16) error {
	if err := to.SetDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	if _, err := to.Write(binary.BigEndian.AppendUint16(nil, port)); err != nil {
		return err
	}
	var answer [1]byte
	if _, err := io.ReadFull(to, answer[:]); err != nil {
		return fmt.Errorf("answer of the guest: %w", err)
	}
	switch answer[0] {
	case connected:
		return to.SetDeadline(time.Time{})
	case refused:
		return fmt.Errorf("nobody listens on localhost in the guest: %w", errdefs.ErrUnavailable)
	default:
		return fmt.Errorf("answer of the guest: %d is none: %w", answer[0], errdefs.ErrDataLoss)
	}
}

// join copies both ways. An end of one is passed on; an error ends both.
func join(a, b net.Conn) {
	var all sync.WaitGroup
	all.Go(func() { pour(a, b) })
	pour(b, a)
	all.Wait()
}

// pour copies from one to the other.
func pour(to, from net.Conn) {
	// Without the methods of both: those write as much at once as they like.
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, chunk))
	if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil && half.CloseWrite() == nil {
		return
	}
	to.Close()
	from.Close()
}
