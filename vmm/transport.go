package vmm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// Vsock is a machine's vsock device: one of Vhost, User and Path.
type Vsock struct {
	CID   uint32   // the guest's
	Vhost *os.File // /dev/vhost-vsock, with CID set
	User  *os.File // connection to a vhost-user daemon
	Path  string   // in Config.Dir: unix socket that the VMM itself shall serve; see hybrid
}

// transport is the host's end of a guest's vsock. Its connections are those of
// a socket: they have deadlines, and end when the machine does.
type transport interface {
	// Dial connects to a port of the guest. Only do so once the guest has said
	// hello: its device may not be ready before. A port that nobody listens on
	// is errdefs.ErrUnavailable.
	Dial(ctx context.Context, port uint32) (net.Conn, error)

	// Listen takes what this guest, and no other, dials to a port of the host.
	Listen(port uint32) (net.Listener, error)
}

// hybrid is vsock over unix sockets, as Firecracker made it up and Cloud
// Hypervisor and vhost-device-vsock have it: to dial, connect to the socket and
// write "CONNECT <port>\n", which is answered with "OK <port>\n"; what the
// guest dials comes to a socket of the same path with "_<port>" after it.
type hybrid struct {
	path string
	keep *keeper // nil where nobody minds a connection that ends unanswered
}

// handshakeTime bounds one attempt to dial. It takes less than a millisecond,
// but may get lost while the guest's device is being reset.
const handshakeTime = 2 * time.Second

// Dial implements transport. An attempt that is not answered is made once more.
func (h hybrid) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	c, err := h.dial(ctx, port)
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
		c, err = h.dial(ctx, port)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("it does not answer: %w: %w", err, errdefs.ErrUnavailable)
	}
	if err != nil {
		return nil, fmt.Errorf("dial guest, port %d: %w", port, err)
	}
	return c, nil
}

func (h hybrid) dial(ctx context.Context, port uint32) (net.Conn, error) {
	if h.keep != nil {
		select {
		case h.keep.turn <- struct{}{}:
			defer func() { <-h.keep.turn }()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	c, err := Dial(ctx, h.path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	if err := h.shake(ctx, c, port); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// shake makes a connection to the device one to the guest.
func (h hybrid) shake(ctx context.Context, c *net.UnixConn, port uint32) error {
	var kept uint64
	if h.keep != nil {
		var err error
		if kept, err = h.keep.put(c); err != nil {
			return err
		}
	}
	deadline := time.Now().Add(handshakeTime)
	if own, ok := ctx.Deadline(); ok && own.Before(deadline) {
		deadline = own
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	err := c.SetDeadline(deadline)
	if err == nil {
		err = connect(c, port)
	}
	if h.keep != nil && !errors.Is(err, os.ErrDeadlineExceeded) { // it was answered, or is closed
		err = errors.Join(err, h.keep.drop(kept))
	}
	if !stop() && err == nil {
		err = context.Cause(ctx) // and the deadline is set, or will be
	}
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	return err
}

// maxReply is longer than "OK 4294967295\n".
const maxReply = 32

func connect(c net.Conn, port uint32) error {
	if _, err := c.Write([]byte("CONNECT " + strconv.FormatUint(uint64(port), 10) + "\n")); err != nil {
		return err
	}
	// What follows the line belongs to the caller: read no more than that.
	line := make([]byte, 0, maxReply)
	for b := [1]byte{}; ; {
		if _, err := c.Read(b[:]); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return err
			}
			return fmt.Errorf("the guest does not listen (%w): %w", err, errdefs.ErrUnavailable)
		}
		if b[0] == '\n' {
			break
		}
		if len(line) == maxReply {
			return fmt.Errorf("answer %q: %w", line, errdefs.ErrUnknown)
		}
		line = append(line, b[0])
	}
	if text := string(line); text != "OK" && !strings.HasPrefix(text, "OK ") {
		return fmt.Errorf("answer %q: %w", text, errdefs.ErrUnavailable)
	}
	return nil
}

// Listen implements transport. A socket of an earlier daemon makes way.
func (h hybrid) Listen(port uint32) (net.Listener, error) {
	return Listen(h.path + "_" + strconv.FormatUint(uint64(port), 10))
}
