package stdio

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"
)

// writer opens a write end of the FIFO n once somebody reads it: one who waits
// in open(2) counts. Until then a writer would not know whether its bytes will
// be read by anyone.
func writer(ctx context.Context, n node) (int, error) {
	fd, err := n.open(unix.O_WRONLY | unix.O_NONBLOCK)
	if !errors.Is(err, unix.ENXIO) {
		return fd, err
	}
	type result struct {
		fd  int
		err error
	}
	opened := make(chan result, 1)
	go func() { // and a thread, for as long as the reader takes
		fd, err := n.open(unix.O_WRONLY)
		opened <- result{fd, err}
	}()
	select {
	case r := <-opened:
		return r.fd, r.err
	case <-ctx.Done():
	}
	// A reader of our own ends the wait in open.
	reader, err := n.open(unix.O_RDONLY | unix.O_NONBLOCK)
	if err != nil {
		return -1, err
	}
	defer unix.Close(reader)
	r := <-opened
	if r.err == nil {
		unix.Close(r.fd)
	}
	return -1, fmt.Errorf("wait for a reader of %s: %w", n.name, context.Cause(ctx))
}

// outputEnds opens a FIFO for a process: the process's end, and the read end
// that keeps what it wrote. flags are the process's.
func outputEnds(n node, flags int) (end, reader int, err error) {
	if end, err = n.open(unix.O_RDWR | flags); err != nil {
		return -1, -1, err
	}
	if reader, err = n.open(unix.O_RDONLY | unix.O_NONBLOCK); err != nil {
		unix.Close(end)
		return -1, -1, err
	}
	return end, reader, nil
}

// inputEnds opens a FIFO for a process: the process's end, and the write end
// that keeps it from ending. flags are the process's.
func inputEnds(n node, flags int) (end, writer int, err error) {
	// With both ends open the others do not wait for each other.
	both, err := n.open(unix.O_RDWR | unix.O_NONBLOCK)
	if err != nil {
		return -1, -1, err
	}
	defer unix.Close(both)
	if end, err = n.open(unix.O_RDONLY | flags); err != nil {
		return -1, -1, err
	}
	if writer, err = n.open(unix.O_WRONLY | unix.O_NONBLOCK); err != nil {
		unix.Close(end)
		return -1, -1, err
	}
	return end, writer, nil
}

// Spool is the path of the FIFO that a process gets instead of the output of
// that name: of a log file, as a process that had the file itself would own it
// and could make it executable or set-user-id, or of a FIFO whose newest bytes
// are retained. It stands beside it, where the next agent finds it again. There
// is none, "", for no name.
func Spool(name string) string {
	if name == "" {
		return ""
	}
	return filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+".fifo")
}

// makeSpool also takes one that an agent left behind.
func makeSpool(log string) (node, error) {
	name := Spool(log)
	if err := unix.Mkfifo(name, 0o600); err != nil && err != unix.EEXIST {
		return node{}, pathError("make FIFO", name, err)
	}
	n, err := lookup(name)
	if err != nil {
		return node{}, err
	}
	if n.mode != unix.S_IFIFO {
		n.close()
		return node{}, kindError(n, "FIFO, and stands where one is needed")
	}
	return n, nil
}

// appendTo opens a log file, and makes it if need be. A link is not followed
// to somewhere else than a regular file.
func appendTo(name string, create bool) (int, error) {
	flags := unix.O_WRONLY | unix.O_APPEND | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY
	if create {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return -1, fmt.Errorf("make directory of log: %w", err)
		}
		flags |= unix.O_CREAT
	}
	fd, err := unix.Open(name, flags, 0o644)
	if err != nil {
		return -1, pathError("open", name, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return -1, errors.Join(err, fmt.Errorf("log %s: it is no regular file: %w", name, errdefs.ErrInvalidArgument))
	}
	return fd, nil
}

func closeFD(fd *int) {
	if *fd >= 0 {
		unix.Close(*fd)
	}
	*fd = -1
}
