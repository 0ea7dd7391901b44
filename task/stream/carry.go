package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// dialTime bounds the making of a connection.
	dialTime = 10 * time.Second

	// tries is how many connections in a row may carry nothing.
	tries = 3
)

// Dial connects to Port of a guest. It is errdefs.ErrUnavailable when the guest
// is gone.
type Dial func(context.Context) (net.Conn, error)

// stream is the host's end of one stream.
type stream struct {
	name string
	kind kind
	file *os.File // non-blocking; nil for a stdin that has ended
	at   uint64   // where output is
}

// carry copies over as many connections as it takes.
func (s *stream) carry(ctx context.Context, dial Dial) (err error) {
	for left := tries; left > 0; left-- {
		var c net.Conn
		if c, err = s.connect(ctx, dial); errdefs.IsNotFound(err) {
			return nil // its process was deleted
		}
		if err != nil {
			return err
		}
		var carried bool
		if carried, err = s.attach(ctx, c); err == nil || ctx.Err() != nil {
			return err
		}
		if carried {
			left = tries
		}
	}
	return fmt.Errorf("%d connections broke: %w", tries, err)
}

func (s *stream) connect(ctx context.Context, dial Dial) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	c, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	if s.at, err = request(c, s.name, s.at); err != nil {
		stop()
		return nil, errors.Join(err, c.Close())
	}
	if !stop() {
		return nil, errors.Join(context.Cause(ctx), c.Close())
	}
	return c, nil
}

// attach copies over one connection, which it closes.
func (s *stream) attach(ctx context.Context, c net.Conn) (carried bool, err error) {
	stop := context.AfterFunc(ctx, func() {
		c.Close()
		if s.file != nil {
			_ = s.file.SetDeadline(time.Unix(1, 0)) // it may wait for its reader
		}
	})
	defer stop()
	defer c.Close()
	if s.kind == stdin {
		return true, s.send(c)
	}
	return s.receive(ctx, c)
}

// receive copies output. Where it cannot be written, because a program that logs
// has ended, it is lost as it would be on the host.
func (s *stream) receive(ctx context.Context, c net.Conn) (carried bool, err error) {
	err = readFrames(c, func(b []byte) error {
		if _, err := s.file.Write(b); err != nil && ctx.Err() != nil {
			return err
		}
		carried = true
		s.at += uint64(len(b))
		return writeCount(c, len(b))
	})
	return carried, err
}

// send copies stdin. The guest ends the connection when the process has gone, or
// when it has all.
func (s *stream) send(c net.Conn) error {
	over := make(chan struct{})
	go func() {
		defer close(over)
		_, _ = c.Read(make([]byte, 1))
		if s.file != nil {
			_ = s.file.SetReadDeadline(time.Unix(1, 0))
		}
	}()
	defer func() {
		c.Close()
		<-over
	}()
	b := frames.Get().(*[frameSize]byte)
	defer frames.Put(b)
	for s.file != nil {
		n, err := s.file.Read(b[headSize:])
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil // over, or closed
		}
		if err := writeFrame(c, b, n); err != nil {
			return nil // it is the guest's to say when stdin is over
		}
	}
	if err := writeFrame(c, b, 0); err != nil {
		return nil
	}
	<-over
	return nil
}
