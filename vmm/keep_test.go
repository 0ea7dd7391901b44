package vmm

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// late is a device that answers no connection until it is told to.
func late(t *testing.T) (h hybrid, conns chan net.Conn) {
	k, err := newKeeper()
	if err != nil {
		t.Fatal(err)
	}
	h = hybrid{filepath.Join(socketDir(t), "v"), k}
	l, err := Listen(h.path)
	if err != nil {
		t.Fatal(err)
	}
	conns = make(chan net.Conn, 16)
	t.Cleanup(func() {
		l.Close()
		close(conns)
		for c := range conns {
			c.Close()
		}
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 64))
			conns <- c
		}
	}()
	return h, conns
}

// An answer that comes when nobody waits for it any more must find the
// connection open, also if that was another daemon's. It is closed when a later
// one is answered.
func TestUnansweredConnectionStaysOpen(t *testing.T) {
	h, conns := late(t)
	if _, err := h.Dial(t.Context(), 7); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	first, second := <-conns, <-conns // an attempt is made twice
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	process := os.NewFile(uintptr(self), "self")
	defer process.Close()
	// What another process would do that has the pair as its descriptors.
	next := again(t, process, h.keep)
	if err := h.keep.close(); err != nil {
		t.Fatal(err)
	}
	defer next.close()
	h.keep = next
	for _, c := range []net.Conn{first, second} {
		if _, err := io.WriteString(c, "OK 7\n"); err != nil {
			t.Errorf("answer: %v", err)
		}
	}
	answered := make(chan net.Conn)
	go func() {
		c := <-conns
		_, _ = io.WriteString(c, "OK 7\n")
		answered <- c
	}()
	c, err := h.Dial(t.Context(), 7)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	defer (<-answered).Close()
	for _, c := range []net.Conn{first, second} {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a connection that was answered is kept")
		}
	}
}

// again finds a keeper as findKeeper does, at its real descriptors.
func again(t *testing.T, process *os.File, k *keeper) *keeper {
	t.Helper()
	var fds [2]int
	for i, f := range k.files() {
		var err error
		if fds[i], err = unix.PidfdGetfd(int(process.Fd()), int(f.Fd()), 0); err != nil {
			t.Skipf("needs pidfd_getfd: %v", err)
		}
	}
	return keeperOf(fds[0], fds[1])
}

// Connections that a guest never answers do not add up without end, and those
// that it answers at last make room.
func TestKeeperIsBounded(t *testing.T) {
	k, err := newKeeper()
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	near, far := pair(t)
	kept := 0
	for err == nil && kept < 10_000 {
		if _, err = k.put(near); err == nil {
			kept++
		}
	}
	if !errdefs.IsUnavailable(err) {
		t.Fatalf("after %d: %v", kept, err)
	}
	if _, err := io.WriteString(far, "OK 7\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := k.put(near); err != nil {
		t.Error(err)
	}
}

// Two processes share a keeper: what the one has done with is not what the other
// waits for.
func TestKeeperIsShared(t *testing.T) {
	k, err := newKeeper()
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	ours, _ := pair(t)
	theirs, far := pair(t)
	at, err := k.put(ours)
	if err != nil {
		t.Fatal(err)
	}
	later, err := k.put(theirs)
	if err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	if err := k.drop(at); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(far, "OK 7\n"); err != nil {
		t.Errorf("the other's is not kept: %v", err)
	}
	if err := k.drop(later); err != nil {
		t.Fatal(err)
	}
	if _, err := far.Read(make([]byte, 1)); err == nil {
		t.Error("it is kept for ever")
	}
}

// pair are the two ends of a connection.
func pair(t *testing.T) (near, far *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1]
}
