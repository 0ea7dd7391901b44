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

	// The next connection is made after minDelay, or twice as long as the last
	// time until one carries something.
	minDelay = 50 * time.Millisecond
	maxDelay = 5 * time.Second

	// lateTime is how long in all a guest is waited for that has told that a
	// container exited, and not that its output ended.
	lateTime = 10 * time.Second

	// lateTries is how many connections in a row may carry nothing then.
	lateTries = 3
)

// Source is a guest to connect to.
type Source interface {
	// Stream connects to Port.
	Stream(context.Context) (net.Conn, error)

	// Done is closed when the guest is over.
	Done() <-chan struct{}
}

// stream is the host's end of one stream.
type stream struct {
	name   string
	kind   kind
	file   *os.File // non-blocking; nil for a stdin that has ended
	at     uint64   // where output is
	exited context.Context
	left   time.Duration // of lateTime
}

// carry copies over as many connections as it takes, until the stream ends or
// the guest is over.
func (s *stream) carry(ctx context.Context, from Source) error {
	delay := minDelay
	for tries := lateTries; ; {
		carried, err := s.try(ctx, from)
		switch {
		case err == nil || ctx.Err() != nil:
			return err
		case carried:
			delay, tries = minDelay, lateTries
		case s.exited.Err() != nil:
			tries--
		}
		if s.left <= 0 || tries == 0 {
			return fmt.Errorf("its container has exited, and its end does not come: %w", err)
		}
		again := time.NewTimer(delay)
		select {
		case <-again.C:
			delay = min(2*delay, maxDelay)
		case <-from.Done():
			again.Stop()
			return err
		case <-ctx.Done():
			again.Stop()
			return context.Cause(ctx)
		}
	}
}

// try copies over one connection.
func (s *stream) try(ctx context.Context, from Source) (carried bool, err error) {
	c, err := s.connect(ctx, from.Stream)
	if errdefs.IsNotFound(err) {
		return false, nil // its process was deleted
	}
	if err != nil {
		return false, err
	}
	return s.attach(ctx, c)
}

func (s *stream) connect(ctx context.Context, dial func(context.Context) (net.Conn, error)) (net.Conn, error) {
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
	late := context.AfterFunc(s.exited, func() { _ = c.SetDeadline(time.Now().Add(lateTime)) })
	defer late()
	return s.receive(ctx, c)
}

// receive copies output. Where it cannot be written, because a program that logs
// has ended, it is lost as it would be on the host.
func (s *stream) receive(ctx context.Context, c net.Conn) (carried bool, err error) {
	guest := limited{c, s}
	err = readFrames(guest, func(b []byte) error {
		if _, err := s.file.Write(b); err != nil && ctx.Err() != nil {
			return err
		}
		carried = true
		s.at += uint64(len(b))
		return writeCount(guest, len(b))
	})
	return carried, err
}

// limited is a connection to a guest that is waited for lateTime in all once the
// container has exited. That also bounds one that sends a byte now and then, or
// takes no counts; a slow reader of the host's is waited for elsewhere.
type limited struct {
	conn   net.Conn
	stream *stream
}

func (l limited) Read(b []byte) (int, error)  { return l.wait(l.conn.Read, b) }
func (l limited) Write(b []byte) (int, error) { return l.wait(l.conn.Write, b) }

func (l limited) wait(do func([]byte) (int, error), b []byte) (int, error) {
	late := l.stream.exited.Err() != nil
	began := time.Now()
	if late {
		if err := l.conn.SetDeadline(began.Add(l.stream.left)); err != nil {
			return 0, err
		}
	}
	n, err := do(b)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		l.stream.left = 0
	case late:
		l.stream.left -= time.Since(began)
	}
	return n, err
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
