package relay

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// fionread is FIONREAD: how many bytes a pipe holds. Linux gives TIOCINQ the
// same number (ioctl_tty(2)), and only that one has a name in x/sys.
const fionread = unix.TIOCINQ

// Stream is one pipe on its way to one FIFO.
type Stream struct {
	name    string
	null    int // descriptor of /dev/null, the relay's
	forget  func()
	drained chan struct{}

	mu           sync.Mutex
	source, sink int // descriptors, closed (and -1) once drained
	keptR, keptW int // descriptors of the pipe of what was kept, -1 once closed
	ahead        int // bytes kept but still in source, as sink was full
	forgot       bool
	final        []byte // what Finish returned
}

func newStream(source, sink *os.File, null int) (*Stream, error) {
	defer source.Close()
	defer sink.Close()
	s := &Stream{
		name: sink.Name(), null: null, forget: func() {}, drained: make(chan struct{}),
		source: -1, sink: -1, keptR: -1, keptW: -1,
	}
	var err error
	if s.source, err = duplicate(source); err != nil {
		return nil, err
	}
	if s.sink, err = duplicate(sink); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	var kept [2]int
	if err := unix.Pipe2(kept[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, errors.Join(fmt.Errorf("create pipe: %w", err), s.Close())
	}
	s.keptR, s.keptW = kept[0], kept[1]
	if _, err := unix.FcntlInt(uintptr(s.keptW), unix.F_SETPIPE_SZ, keepPipe); err != nil {
		return nil, errors.Join(fmt.Errorf("enlarge pipe to %d bytes: %w", keepPipe, err), s.Close())
	}
	return s, nil
}

// duplicate takes a descriptor away from Go's poller, which has an epoll of
// its own.
func duplicate(f *os.File) (fd int, err error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	cerr := conn.Control(func(old uintptr) {
		fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err := errors.Join(cerr, err); err != nil {
		return -1, fmt.Errorf("duplicate descriptor of %s: %w", f.Name(), err)
	}
	return fd, nil
}

// Drained is closed when the source ended and all of it is in the FIFO, or
// when the stream was closed.
func (s *Stream) Drained() <-chan struct{} { return s.drained }

// Close forgets the stream and what it kept. Idempotent.
func (s *Stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finish()
	return closeAll(&s.keptR, &s.keptW)
}

// finish closes source and sink: the reader of the FIFO sees its end. What was
// kept stays, as the reader may be dead.
func (s *Stream) finish() {
	if s.source < 0 && s.sink < 0 {
		return
	}
	s.forget()
	_ = closeAll(&s.source, &s.sink)
	close(s.drained)
}

func closeAll(fds ...*int) error {
	var errs []error
	for _, fd := range fds {
		if *fd >= 0 {
			errs = append(errs, unix.Close(*fd))
		}
		*fd = -1
	}
	return errors.Join(errs...)
}

// pump moves all that can be moved now. It runs on the relay's goroutine and
// never blocks.
func (s *Stream) pump() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.source >= 0 {
		if s.ahead > 0 {
			n, err := unix.Splice(s.source, nil, s.sink, nil, s.ahead, unix.SPLICE_F_NONBLOCK)
			if errors.Is(err, unix.EAGAIN) {
				return // sink is full: its reader wakes us
			}
			if err != nil {
				s.finish()
				return
			}
			s.ahead -= int(n)
			if fill, err := unix.IoctlGetInt(s.source, fionread); s.ahead == 0 && err == nil && fill == 0 {
				return // the next write, or the end, wakes us
			}
			continue
		}
		n, err := unix.Tee(s.source, s.keptW, chunk, unix.SPLICE_F_NONBLOCK)
		switch {
		case err == nil && n > 0:
			s.ahead = int(n)
			continue
		case errors.Is(err, unix.EAGAIN) && !ready(s.keptW, unix.POLLOUT):
			err = s.makeRoom()
		case errors.Is(err, unix.EAGAIN):
			if !ready(s.source, unix.POLLIN) {
				return // the next write, or the end, wakes us
			}
			err = nil // written just now
		default:
			err = errors.Join(err, io.EOF) // the last writer is gone
		}
		if err != nil {
			s.finish()
			return
		}
	}
}

// ready says whether a descriptor has one of the events, or has ended.
func ready(fd int, events int16) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, 0)
	return n > 0 && err == nil
}

// makeRoom forgets the oldest of what was kept. The pipe is full either of
// bytes or, after many small writes, of nearly empty pages.
func (s *Stream) makeRoom() error {
	fill, err := unix.IoctlGetInt(s.keptR, fionread)
	if err != nil {
		return err
	}
	if fill > Keep {
		s.forgot = true
		_, err := unix.Splice(s.keptR, nil, s.null, nil, fill-Keep, unix.SPLICE_F_NONBLOCK)
		return err
	}
	all, err := s.take()
	if err != nil {
		return err
	}
	return s.put(all) // writing fills pages
}

// Retained returns the newest output that has left the FIFO, oldest first: all
// that its reader may have lost, and usually much that it has not. complete
// says that nothing older was ever forgotten. Call it while nothing reads the
// FIFO; what is in there is not part of it.
func (s *Stream) Retained() (data []byte, complete bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keptR < 0 {
		return nil, false, nil
	}
	waiting := 0
	if s.sink >= 0 {
		if waiting, err = unix.IoctlGetInt(s.sink, fionread); err != nil {
			return nil, false, fmt.Errorf("read fill of %s: %w", s.name, err)
		}
	}
	all, err := s.take()
	if err == nil {
		err = s.put(all)
	}
	if err != nil {
		return nil, false, fmt.Errorf("read what was kept of %s: %w", s.name, err)
	}
	return all[:max(len(all)-waiting-s.ahead, 0)], !s.forgot, nil
}

// Finish ends a stream whose source has no writer any more, and returns what
// Retained would with all that comes after it: what is in the FIFO, which
// loses it, and what did not get there. It can be repeated.
func (s *Stream) Finish() (data []byte, complete bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keptR < 0 || s.final != nil {
		return s.final, !s.forgot, nil
	}
	data, err = s.take()
	if err != nil {
		return nil, false, fmt.Errorf("read what was kept of %s: %w", s.name, err)
	}
	if s.source >= 0 {
		rest, err := drain(s.source)
		if err != nil {
			return nil, false, fmt.Errorf("read what is on its way to %s: %w", s.name, err)
		}
		data = append(data, rest[min(s.ahead, len(rest)):]...)
	}
	s.final = data
	s.finish()
	return s.final, !s.forgot, nil
}

// take empties the pipe of what was kept.
func (s *Stream) take() ([]byte, error) { return drain(s.keptR) }

// drain reads all that is in a pipe now.
func drain(pipe int) ([]byte, error) {
	fill, err := unix.IoctlGetInt(pipe, fionread)
	if err != nil {
		return nil, err
	}
	buf, n := make([]byte, fill), 0
	for n < len(buf) {
		m, err := unix.Read(pipe, buf[n:])
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			return nil, err
		}
		if m == 0 {
			break
		}
		n += m
	}
	return buf[:n], nil
}

func (s *Stream) put(b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(s.keptW, b)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
