package hold

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// patience is how long a daemon may take to read one message. One that takes
// longer is disconnected: the worker does not wait for it.
const patience = time.Second

// Holder is the worker's end. Safe for concurrent use.
type Holder struct {
	listener *net.UnixListener
	table    *table
	closing  chan struct{} // closed by Close
	done     chan struct{} // closed when the goroutine that accepts ended
	restored chan struct{} // closed when a daemon has given back all it held

	mu      sync.Mutex
	session *session // with the daemon, nil without
	taken   bool     // Restore was called
	closed  bool
}

// Listen makes the worker's end. It takes the place of a socket that a dead
// worker left at path.
func Listen(path string) (*Holder, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("listen for a daemon: %w", err)
		}
	}
	listener, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: path})
	if err != nil {
		return nil, fmt.Errorf("listen for a daemon: %w", err)
	}
	listener.SetUnlinkOnClose(false) // by then it may be the next worker's
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("listen for a daemon: %w", err), listener.Close())
	}
	h := &Holder{
		listener: listener,
		table:    newTable(),
		closing:  make(chan struct{}),
		done:     make(chan struct{}),
		restored: make(chan struct{}),
	}
	go h.accept()
	return h, nil
}

// Restore waits for the first daemon and returns what it held: the files are
// the caller's. The Holder has duplicates, so that Drop is to be called for
// what is not wanted. Once.
func (h *Holder) Restore(ctx context.Context) (map[string]*os.File, error) {
	h.mu.Lock()
	taken := h.taken
	h.taken = true
	h.mu.Unlock()
	if taken {
		return nil, fmt.Errorf("restore descriptors: it was done: %w", errdefs.ErrFailedPrecondition)
	}
	select {
	case <-h.restored:
	case <-h.done:
		return nil, fmt.Errorf("restore descriptors: %w", net.ErrClosed)
	case <-ctx.Done():
		return nil, fmt.Errorf("restore descriptors: wait for a daemon: %w", context.Cause(ctx))
	}
	files := map[string]*os.File{}
	for _, key := range h.table.keys("") {
		f, err := h.table.file(key)
		if errdefs.IsNotFound(err) { // dropped by now
			continue
		}
		if err != nil {
			for f := range maps.Values(files) {
				f.Close()
			}
			return nil, fmt.Errorf("restore descriptors: %w", err)
		}
		files[key] = f
	}
	return files, nil
}

// Hold gives the daemon a duplicate of f; the next one too, and the next
// worker, until Drop. It returns when the daemon will have it even if we die
// now, or when no daemon is there. f remains the caller's.
func (h *Holder) Hold(key string, f *os.File) error {
	if err := checkKey(key); err != nil {
		return fmt.Errorf("hold descriptor: %w", err)
	}
	fd, err := duplicate(f)
	if err != nil {
		return fmt.Errorf("hold %s: %w", key, err)
	}
	if err := h.table.put(key, fd); err != nil {
		return err
	}
	h.mu.Lock()
	s, closed := h.session, h.closed
	h.mu.Unlock()
	if closed {
		h.table.drop(key)
		return fmt.Errorf("hold %s: %w", key, net.ErrClosed)
	}
	if s != nil {
		s.update(key, true)
	}
	return nil
}

// Drop lets go of a key, everywhere. An unknown one is nothing. It does not
// block.
func (h *Holder) Drop(key string) {
	if !h.table.drop(key) {
		return
	}
	h.mu.Lock()
	s := h.session
	h.mu.Unlock()
	if s != nil {
		s.update(key, false)
	}
}

// DropAll drops the keys that start with prefix.
func (h *Holder) DropAll(prefix string) {
	for _, key := range h.table.keys(prefix) {
		h.Drop(key)
	}
}

// Close ends the connection and lets go of everything; the daemon keeps what
// it has.
func (h *Holder) Close() error {
	h.mu.Lock()
	closed := h.closed
	h.closed = true
	s := h.session
	h.mu.Unlock()
	if closed {
		return nil
	}
	close(h.closing)
	err := h.listener.Close()
	if s != nil {
		s.end()
	}
	<-h.done
	h.table.clear()
	return err
}

// accept serves one daemon at a time. A new one means that the former is dead,
// whether or not we know it.
func (h *Holder) accept() {
	defer close(h.done)
	var last *session
	defer func() {
		if last != nil {
			last.retire()
		}
	}()
	for {
		conn, err := h.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // the peer is gone again, or we are out of descriptors
			if !errors.Is(err, unix.ECONNABORTED) {
				h.pause()
			}
			continue
		}
		if err := trusted(conn); err != nil {
			conn.Close()
			continue
		}
		if last != nil {
			last.retire()
		}
		last = h.serve(conn)
	}
}

// pause lets a moment pass when we are out of descriptors: there is no event
// for their becoming free.
func (h *Holder) pause() {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-h.closing:
	}
}

// trusted lets in root and ourselves: whoever else could reach the socket is
// no daemon.
func trusted(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(cerr, err); err != nil {
		return err
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("peer has user id %d: %w", cred.Uid, errdefs.ErrPermissionDenied)
	}
	return nil
}

// take receives what the daemon has, until it says that this was all. Of the
// first daemon we keep it: these are known. A later one may have things under
// keys that we dropped or used again meanwhile: it is told what to think of
// all others.
func (h *Holder) take(w wire) (known, others map[string]bool, err error) {
	known, others = map[string]bool{}, map[string]bool{}
	for {
		m, fd, err := w.receive()
		if err != nil {
			return nil, nil, err
		}
		switch {
		case m.Op == opDone:
			return known, others, nil
		case m.Op != opHold:
			return nil, nil, fmt.Errorf("daemon sent %s: %w", m.Op, errdefs.ErrInvalidArgument)
		case h.isRestored() || h.table.has(m.Key):
			unix.Close(fd)
			others[m.Key] = true
		default:
			known[m.Key] = true
			if err := h.table.put(m.Key, fd); err != nil {
				return nil, nil, err
			}
		}
		if len(known)+len(others) > maxHeld {
			return nil, nil, fmt.Errorf("daemon sent more than %d descriptors: %w", maxHeld, errdefs.ErrResourceExhausted)
		}
	}
}

func (h *Holder) isRestored() bool {
	select {
	case <-h.restored:
		return true
	default:
		return false
	}
}

// silence reads until the connection ends: a daemon has nothing more to say.
func silence(w wire) error {
	m, fd, err := w.receive()
	if err == nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		err = fmt.Errorf("daemon sent %s: %w", m.Op, errdefs.ErrInvalidArgument)
	}
	return err
}
