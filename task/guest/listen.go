package guest

import (
	"errors"
	"fmt"
	"net"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// chunk is what is written at once: larger writes stall some vsock devices.
const chunk = 16 << 10

// Listen takes what the host dials to a port of the guest's vsock.
func Listen(port uint32) (net.Listener, error) {
	l, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, port, nil)
	if err != nil {
		return nil, fmt.Errorf("listen at vsock port %d: is there a vsock device? %w", port, err)
	}
	return listener{l}, nil
}

type listener struct{ *vsock.Listener }

// Accept implements net.Listener. Only the host is let in: containers may have
// vsock, too.
func (l listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if a, ok := c.RemoteAddr().(*vsock.Addr); ok && a.ContextID == unix.VMADDR_CID_HOST {
			return conn{c.(*vsock.Conn)}, nil
		}
		c.Close()
	}
}

type conn struct{ *vsock.Conn }

// Write implements net.Conn.
func (c conn) Write(b []byte) (n int, err error) { return pieces(c.Conn, b) }

type writer interface{ Write(b []byte) (int, error) }

// pieces writes b in chunks.
func pieces(w writer, b []byte) (n int, err error) {
	for {
		var m int
		m, err = w.Write(b[n:min(n+chunk, len(b))])
		if n += m; err != nil || n == len(b) {
			return n, err
		}
	}
}

// greetTries is how often the host is dialed, where nothing answers: each takes
// two seconds (VSOCK_DEFAULT_CONNECT_TIMEOUT of net/vmw_vsock/af_vsock.c). What
// is sent just when a device was plugged may be lost.
const greetTries = 5

// Greet says hello to the host, which listens for it.
func Greet() error {
	var c net.Conn
	var err error
	for range greetTries {
		if c, err = dialHost(); !errors.Is(err, unix.ETIMEDOUT) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("dial the host: %w", err)
	}
	defer c.Close()
	if _, err := c.Write(api.Hello()); err != nil {
		return fmt.Errorf("say hello to the host: %w", err)
	}
	return nil
}

func dialHost() (net.Conn, error) {
	c, err := vsock.Dial(unix.VMADDR_CID_HOST, api.Port, nil)
	if err != nil {
		return nil, err // and no nil of another type
	}
	return c, nil
}
