package vmm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/task"
)

// Ports of vsock.
const (
	// helloPort of the host is dialed by the agent once it listens.
	helloPort = 1024
	// agentPort of the guest is where it listens.
	agentPort = 1024
)

// helloTime bounds how long a guest may take to send its hello once it has
// dialed.
const helloTime = 5 * time.Second

// hello is what an agent says first: helloMagic and its protocol, in network
// order. It is the first that the host reads of a guest, and it may be anything.
const (
	helloMagic = "kuasar\x00\x01"
	helloSize  = len(helloMagic) + 4
)

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

func readHello(r io.Reader) error {
	var b [helloSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("it is cut off: %w", errdefs.ErrDataLoss)
		}
		return err
	}
	if string(b[:len(helloMagic)]) != helloMagic {
		return fmt.Errorf("%q is none: is the guest's init kuasar-task? %w", b, errdefs.ErrFailedPrecondition)
	}
	if got := binary.BigEndian.Uint32(b[len(helloMagic):]); got != task.Protocol {
		return fmt.Errorf("the agent speaks protocol %d, this daemon %d: make the guest's initramfs of this release: %w", got, task.Protocol, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// Hello is what an agent says.
func Hello() []byte { return binary.BigEndian.AppendUint32([]byte(helloMagic), task.Protocol) }
