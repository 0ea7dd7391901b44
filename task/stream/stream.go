// Package stream carries the stdio of a guest's processes between the guest's
// agent and the daemon, for no byte to be lost or told twice whoever of the two
// ends of a connection, or the connection, dies:
//
//	guest                                            host
//	process ──FIFO──► backlog ══frames══► daemon ──FIFO──► containerd ──► log
//	                          ◄══counts══
//	process ◄──FIFO─────────── ◄══frames══ daemon ◄──FIFO── containerd
//
// In the guest, Guest gives processes FIFOs of the guest's as package stdio
// does it on a host. What a process wrote waits in its stream's backlog until
// the host has counted it as delivered; a connection begins with what was not.
// Of a process whose output containerd logs, the newest output stays beyond that,
// for the log of a daemon that died with some in hand (see api.AgentClient's
// Retained).
//
// On the host, Host opens what containerd names as package stdio does it for a
// process of the host, and a Carrier copies. A full FIFO stops it, then the
// connection, then the backlog, then the process.
//
// Each stream has a connection of its own, to Port: the transport's flow
// control is each stream's, and a reader that does not read stops nobody else.
// The host begins with a request: two bytes of length and as many of the stream's
// name, and eight that say where in the stream, in bytes from its beginning, it
// is as far as it knows. The answer is one byte, and eight that say where this
// connection begins. Then who has the data sends frames: two bytes of length and
// as many of data; none is the end. Of output, the host answers with counts: four
// bytes, how many bytes it has delivered since the one before. Whoever reads the
// end closes. All numbers are in network order.
package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/containerd/errdefs"
)

// Port of the guest's vsock where it takes connections.
const Port = 1026

const (
	// frameSize bounds a frame with its length: larger writes stall some vsock
	// devices.
	frameSize = 16 << 10
	headSize  = 2
	dataSize  = frameSize - headSize

	countSize  = 4
	placeSize  = 8
	answerSize = 1 + placeSize

	// nameSize bounds the name of a stream: three identifiers of containerd, of
	// 76 bytes each, and more.
	nameSize = 512
)

// Answers to a request.
const (
	answerYes = iota
	answerNo  // there is no such stream
)

// kind is one of a process's streams. They have the numbers of its
// descriptors.
type kind int

const (
	stdin kind = iota
	stdout
	stderr
	kinds
)

func (k kind) String() string { return [...]string{"stdin", "stdout", "stderr"}[k] }

// name of a process's stream; exec is empty for a container's first process.
// None of the parts has a slash.
func name(namespace, container, exec string, k kind) string {
	return namespace + "/" + container + "/" + exec + "/" + k.String()
}

// frames are buffers of frameSize that are not in use.
var frames = sync.Pool{New: func() any { return new([frameSize]byte) }}

// writeFrame sends the n bytes that are behind the head of b.
func writeFrame(w io.Writer, b *[frameSize]byte, n int) error {
	binary.BigEndian.PutUint16(b[:], uint16(n))
	_, err := w.Write(b[:headSize+n])
	return err
}

// readHead waits for a frame and returns its length; 0 is the end.
func readHead(r io.Reader) (int, error) {
	var head [headSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n > dataSize {
		return 0, fmt.Errorf("a frame of %d bytes, more than %d: %w", n, dataSize, errdefs.ErrOutOfRange)
	}
	return n, nil
}

// readFrames gives all data to sink, a frame at a time, until the end.
func readFrames(r io.Reader, sink func([]byte) error) error {
	for {
		n, err := readHead(r)
		if err != nil || n == 0 {
			return err
		}
		if err := readFrame(r, n, sink); err != nil {
			return err
		}
	}
}

// readFrame has a buffer only as long as there is something for it.
func readFrame(r io.Reader, n int, sink func([]byte) error) error {
	b := frames.Get().(*[frameSize]byte)
	defer frames.Put(b)
	if _, err := io.ReadFull(r, b[:n]); err != nil {
		return err
	}
	return sink(b[:n])
}

func writeCount(w io.Writer, n int) error {
	_, err := w.Write(binary.BigEndian.AppendUint32(nil, uint32(n)))
	return err
}

func readCount(r io.Reader) (int, error) {
	var b [countSize]byte
	_, err := io.ReadFull(r, b[:])
	return int(binary.BigEndian.Uint32(b[:])), err
}

// request asks for a stream from a place on, and returns from where it comes. It
// is errdefs.ErrNotFound where there is none.
func request(c net.Conn, name string, at uint64) (start uint64, err error) {
	b := append(binary.BigEndian.AppendUint16(nil, uint16(len(name))), name...)
	if _, err := c.Write(binary.BigEndian.AppendUint64(b, at)); err != nil {
		return 0, err
	}
	var answer [answerSize]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return 0, err
	}
	switch answer[0] {
	case answerYes:
		return binary.BigEndian.Uint64(answer[1:]), nil
	case answerNo:
		return 0, fmt.Errorf("the guest has no stream %s: %w", name, errdefs.ErrNotFound)
	}
	return 0, fmt.Errorf("the guest answers %d: %w", answer[0], errdefs.ErrUnknown)
}

func writeAnswer(w io.Writer, answer byte, start uint64) error {
	_, err := w.Write(binary.BigEndian.AppendUint64([]byte{answer}, start))
	return err
}

func readRequest(r io.Reader) (name string, at uint64, err error) {
	var head [headSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return "", 0, err
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n > nameSize {
		return "", 0, errors.New("the name of a stream is too long")
	}
	b := make([]byte, n+placeSize)
	if _, err := io.ReadFull(r, b); err != nil {
		return "", 0, err
	}
	return string(b[:n]), binary.BigEndian.Uint64(b[n:]), nil
}
