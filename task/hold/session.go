package hold

import (
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
)

var fpSend = failpoint.New("hold/send/descriptor")

// session is the connection of a Holder to one daemon: a goroutine that
// receives, and one that sends which keys changed. What is sent of a key is
// what the table has of it then.
type session struct {
	wire  wire
	table *table
	done  chan struct{} // closed when both goroutines ended

	mu     sync.Mutex
	queue  []change
	wake   chan struct{} // has a token when queue was added to
	ended  chan struct{}
	ending bool
}

// change is a key that may differ between us and the daemon.
type change struct {
	key  string
	sent chan struct{} // closed when it does no more; nil if nobody waits
}

// serve runs a session. The daemon speaks first.
func (h *Holder) serve(conn *net.UnixConn) *session {
	s := &session{
		wire:  wire{conn},
		table: h.table,
		done:  make(chan struct{}),
		wake:  make(chan struct{}, 1),
		ended: make(chan struct{}),
	}
	go func() {
		defer close(s.done)
		defer s.end()
		_ = s.run(h) // the daemon's end knows better what was wrong
	}()
	return s
}

func (s *session) run(h *Holder) (err error) {
	defer rescue(&err)
	known, others, err := h.take(s.wire)
	if err != nil {
		return err
	}
	if !h.begin(s) {
		return net.ErrClosed
	}
	defer h.leave(s)
	var sender sync.WaitGroup
	sender.Go(func() {
		defer s.end()
		_ = s.send(known, others)
	})
	err = silence(s.wire)
	s.end()
	sender.Wait()
	return err
}

// begin makes s the session that changes go to. All from now on do; what was
// before, send finds in the table.
func (h *Holder) begin(s *session) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.session = s
	if !h.isRestored() {
		close(h.restored)
	}
	return true
}

func (h *Holder) leave(s *session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.session == s {
		h.session = nil
	}
}

// end closes the connection and lets everybody go who waits for it.
func (s *session) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return
	}
	s.ending = true
	s.wire.conn.Close()
	close(s.ended)
}

// retire ends a session and waits for it. What the daemon has sent is received
// first: if it died, its descriptors are nowhere else.
func (s *session) retire() {
	_ = s.wire.conn.CloseRead()
	<-s.done
}

// update sends a key. With wait it returns when that is done or the session is
// over.
func (s *session) update(key string, wait bool) {
	c := change{key: key}
	if wait {
		c.sent = make(chan struct{})
	}
	s.mu.Lock()
	s.queue = append(s.queue, c)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
	if wait {
		select {
		case <-c.sent:
		case <-s.ended:
		}
	}
}

// send tells the daemon what it does not know, then what changes.
func (s *session) send(known, others map[string]bool) error {
	for _, key := range s.table.keys("") {
		if known[key] {
			continue
		}
		delete(others, key)
		if err := s.tell(key); err != nil {
			return err
		}
	}
	for key := range others {
		if err := s.tell(key); err != nil {
			return err
		}
	}
	if err := s.write(message{Op: opDone}, -1); err != nil {
		return err
	}
	known, others = nil, nil // this goroutine lives long
	for {
		select {
		case <-s.wake:
		case <-s.ended:
			return net.ErrClosed
		}
		for _, c := range s.changes() {
			if err := s.tell(c.key); err != nil {
				return err
			}
			if c.sent != nil {
				close(c.sent)
			}
		}
	}
}

func (s *session) changes() []change {
	s.mu.Lock()
	defer s.mu.Unlock()
	queue := s.queue
	s.queue = nil
	return queue
}

// tell sends what the table has of a key.
func (s *session) tell(key string) error {
	fd, err := s.table.get(key)
	if errdefs.IsNotFound(err) {
		return s.write(message{Op: opDrop, Key: key}, -1)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	fpSend.Hit()
	return s.write(message{Op: opHold, Key: key}, fd)
}

func (s *session) write(m message, fd int) error {
	if err := s.wire.conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	return s.wire.send(m, fd)
}
