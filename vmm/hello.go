package vmm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// Ports of vsock.
const (
	// helloPort of the host is dialed by the agent once it listens.
	helloPort = api.Port
	// agentPort of the guest is where it listens.
	agentPort = api.Port
)

// helloTime bounds how long a guest may take to send its hello once it has
// dialed.
const helloTime = 5 * time.Second

// hear takes the one hello of a guest.
func hear(l net.Listener) error {
	c, err := l.Accept()
	if err != nil {
		return fmt.Errorf("wait for the guest's agent: %w", err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(helloTime)); err != nil {
		return err
	}
	if err := readHello(c); err != nil {
		return fmt.Errorf("hello of the guest's agent: %w", err)
	}
	return nil
}

// readHello reads the first that the host hears of a guest: it may be anything.
func readHello(r io.Reader) error {
	var b [api.HelloSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("it is cut off: %w", errdefs.ErrDataLoss)
		}
		return err
	}
	if string(b[:len(api.HelloMagic)]) != api.HelloMagic {
		return fmt.Errorf("%q is none: is the guest's init kuasar-task? %w", b, errdefs.ErrFailedPrecondition)
	}
	if got := binary.BigEndian.Uint32(b[len(api.HelloMagic):]); got != api.Protocol {
		return fmt.Errorf("the agent speaks protocol %d, this daemon %d: make the guest's initramfs of this release: %w", got, api.Protocol, errdefs.ErrFailedPrecondition)
	}
	return nil
}
