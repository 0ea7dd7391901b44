package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// output collects what comes out of a FIFO.
type output struct {
	path string
	buf  bytes.Buffer
	done chan struct{} // closed at its end
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
	o := &output{path: path, done: make(chan struct{})}
	f := os.NewFile(uintptr(fd), path)
	started := make(chan struct{})
	go func() {
		defer close(o.done)
		defer f.Close()
		close(started)
		_, _ = o.buf.ReadFrom(untilEnd{f, fd})
	}()
	<-started
	return o
}

// untilEnd waits for the first writer: before it comes a FIFO reads as ended.
type untilEnd struct {
	f  *os.File
	fd int
}

func (r untilEnd) Read(b []byte) (int, error) {
	for {
		n, err := r.f.Read(b)
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

func (o *output) String() string {
	select {
	case <-o.done:
		return o.buf.String()
	case <-time.After(deadline):
		return "(output does not end)"
	}
}
