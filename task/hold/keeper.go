package hold

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Keeper is the daemon's end: it outlives any number of workers. Safe for
// concurrent use.
type Keeper struct {
	table *table
	turn  chan struct{} // has a token while somebody connects

	mu     sync.Mutex
	link   *Link // the newest
	closed bool
}

// Link is a Keeper's connection to one worker.
type Link struct {
	wire wire
	done chan struct{}
	err  error // before done is closed
}

// NewKeeper makes an empty one.
func NewKeeper() *Keeper {
	return &Keeper{table: newTable(), turn: make(chan struct{}, 1)}
}

// Connect gives the worker at path all that is held and returns when the
// worker has given back all it has: then the Keeper is complete. It stays so,
// by one goroutine, until the Link is done. The former Link is ended before.
func (k *Keeper) Connect(ctx context.Context, path string) (*Link, error) {
	select {
	case k.turn <- struct{}{}:
		defer func() { <-k.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("connect to worker at %s: %w", path, context.Cause(ctx))
	}
	if err := k.unlink(); err != nil {
		return nil, fmt.Errorf("connect to worker at %s: %w", path, err)
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unixpacket", path)
	if err != nil {
		return nil, fmt.Errorf("connect to worker: %w", err)
	}
	l := &Link{wire: wire{conn.(*net.UnixConn)}, done: make(chan struct{})}
	if err := k.greet(ctx, l); err != nil {
		k.drain(l)
		return nil, fmt.Errorf("connect to worker at %s: %w", path, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil, errors.Join(fmt.Errorf("connect to worker at %s: %w", path, net.ErrClosed), conn.Close())
	}
	k.link = l
	go func() {
		defer close(l.done)
		l.err = k.follow(l)
		_ = conn.Close()
	}()
	return l, nil
}

// drain takes what the worker has sent, and ends the connection. There may be
// nobody to hear of an error.
func (k *Keeper) drain(l *Link) {
	var err error
	defer rescue(&err)
	defer l.wire.conn.Close()
	err = errors.Join(l.wire.conn.CloseRead(), l.wire.conn.SetDeadline(time.Time{}))
	for err == nil {
		_, err = k.receive(l.wire)
	}
}

// unlink ends the former connection and waits until nothing comes from it.
func (k *Keeper) unlink() error {
	k.mu.Lock()
	last, closed := k.link, k.closed
	k.mu.Unlock()
	if closed {
		return net.ErrClosed
	}
	if last != nil {
		return last.Close()
	}
	return nil
}

// greet is the exchange of all that both have.
func (k *Keeper) greet(ctx context.Context, l *Link) (err error) {
	defer rescue(&err)
	if err := trusted(l.wire.conn); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.wire.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err = k.sendAll(l.wire); err == nil {
		err = k.receiveAll(l.wire)
	}
	if !stop() { // the deadline has passed, or is about to
		return context.Cause(ctx)
	}
	return err
}

func (k *Keeper) sendAll(w wire) error {
	for _, key := range k.table.keys("") {
		fd, err := k.table.get(key)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		err = w.send(message{Op: opHold, Key: key}, fd)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("send %s: %w", key, err)
		}
	}
	if err := w.send(message{Op: opDone}, -1); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

func (k *Keeper) receiveAll(w wire) error {
	for {
		done, err := k.receive(w)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if done || err != nil {
			return err
		}
	}
}

// follow keeps up with the worker until the connection ends. It returns nil
// if the worker ended it, by its death as a rule, or we.
func (k *Keeper) follow(l *Link) (err error) {
	defer rescue(&err)
	for {
		done, err := k.receive(l.wire)
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case done:
			return fmt.Errorf("worker sent %s twice: %w", opDone, errdefs.ErrInvalidArgument)
		}
	}
}

// receive does what one message says.
func (k *Keeper) receive(w wire) (done bool, err error) {
	m, fd, err := w.receive()
	if err != nil {
		return false, err
	}
	switch m.Op {
	case opHold:
		return false, k.table.put(m.Key, fd)
	case opDrop:
		k.table.drop(m.Key)
		return false, nil
	}
	return true, nil
}

// Done is closed when the connection ended.
func (l *Link) Done() <-chan struct{} { return l.done }

// Err says after Done why we ended the connection; nil if the worker did, or
// Close.
func (l *Link) Err() error {
	select {
	case <-l.done:
		return l.err
	default:
		return nil
	}
}

// Close ends the connection and returns when the Keeper has all that the worker
// has sent: if it died, its descriptors are nowhere else.
func (l *Link) Close() error {
	err := l.wire.conn.CloseRead()
	if errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ENOTCONN) { // it has ended
		err = nil
	}
	if err != nil {
		return fmt.Errorf("disconnect from worker: %w", errors.Join(err, l.wire.conn.Close()))
	}
	<-l.done
	return nil
}

// Keys lists what is held, sorted.
func (k *Keeper) Keys() []string { return k.table.keys("") }

// Get returns a duplicate for the caller to close. An unknown key is
// errdefs.ErrNotFound.
func (k *Keeper) Get(key string) (*os.File, error) { return k.table.file(key) }

// Clear lets go of everything, after a worker has ended for good.
func (k *Keeper) Clear() { k.table.clear() }

// Close ends the connection and lets go of everything.
func (k *Keeper) Close() error {
	k.mu.Lock()
	last, closed := k.link, k.closed
	k.closed = true
	k.mu.Unlock()
	if closed {
		return nil
	}
	var err error
	if last != nil {
		err = last.Close()
	}
	k.Clear()
	return err
}
