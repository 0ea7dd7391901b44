package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// output collects what comes out of a FIFO.
type output struct {
	path  string
	begun chan struct{} // closed once there is some
	done  chan struct{} // closed at its end

	mu   sync.Mutex
	cond sync.Cond
	buf  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.cond.Broadcast()
	return o.buf.Write(b)
}

// await waits until all of the output is want.
func (o *output) await(t testing.TB, want string) {
	t.Helper()
	end := time.Now().Add(deadline)
	timer := time.AfterFunc(deadline, o.cond.Broadcast)
	defer timer.Stop()
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.buf.String() != want {
		if time.Now().After(end) {
			t.Fatalf("output %q is not %q", o.buf.String(), want)
		}
		o.cond.Wait()
	}
}

func (n *node) read(path string) *output {
	n.Helper()
	if err := unix.Mkfifo(path, 0o600); err != nil {
		n.Fatal(err)
	}
	// containerd opens its end before the task is created, without waiting.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		n.Fatal(err)
	}
	o := &output{path: path, begun: make(chan struct{}), done: make(chan struct{})}
	o.cond.L = &o.mu
	f := os.NewFile(uintptr(fd), path)
	started := make(chan struct{})
	go func() {
		defer close(o.done)
		defer f.Close()
		close(started)
		_, _ = io.Copy(o, &untilEnd{f, fd, sync.OnceFunc(func() { close(o.begun) })})
	}()
	<-started
	return o
}

// untilEnd waits for the first writer: before it comes a FIFO reads as ended.
type untilEnd struct {
	f     *os.File
	fd    int
	begun func()
}

func (r *untilEnd) Read(b []byte) (int, error) {
	for {
		n, err := r.f.Read(b)
		if n > 0 {
			r.begun()
		}
		if n > 0 || !errors.Is(err, io.EOF) {
			return n, err
		}
		fds := []unix.PollFd{{Fd: int32(r.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, int(deadline/time.Millisecond)); err != nil && err != unix.EINTR {
			return 0, err
		}
		if fds[0].Revents&unix.POLLHUP != 0 && fds[0].Revents&unix.POLLIN == 0 {
			return 0, io.EOF
		}
	}
}

// began waits until there is some, and is false if it ended without.
func (o *output) began() bool {
	select {
	case <-o.begun:
		return true
	case <-o.done:
		return o.buf.Len() > 0
	case <-time.After(deadline):
		return false
	}
}

func (o *output) String() string {
	select {
	case <-o.done:
		return o.buf.String()
	case <-time.After(deadline):
		return "(output does not end)"
	}
}
