// Package relay moves containers' output from their pipes to the FIFOs that
// containerd reads, and remembers the newest of it.
//
// containerd reads a FIFO into memory and writes a log file. If it dies in
// between, what it read is gone from the FIFO and not in the log. So the last
// bytes that went by are kept until newer ones push them out: after a restart
// the daemon compares them with its log and appends what is missing.
//
//	container ──► source ──tee──► kept (the newest Keep bytes and more)
//	                 └──splice──► FIFO ──► containerd ──► log
//
// Bytes never enter this process: tee(2) and splice(2) pass references to
// pages, and one goroutine serves all streams by edge-triggered epoll, so a
// stream costs four descriptors and next to no memory of ours.
package relay

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// Keep is how much of a stream's newest output is held at least. It covers
	// what can be in flight in containerd's CRI plugin at once: a full FIFO
	// (64 KiB), one copy buffer (32 KiB), one read buffer (4 KiB) and one
	// unfinished line (16 KiB, max_container_log_line_size).
	Keep = 128 << 10

	// keepPipe is the capacity asked for: twice Keep, so that output is
	// forgotten in large steps.
	keepPipe = 2 * Keep

	// chunk is the most that one tee moves; pipes hold 64 KiB by default.
	chunk = 64 << 10
)

// Relay serves any number of streams. Safe for concurrent use.
type Relay struct {
	epoll, stop, null int // descriptors
	done              chan struct{}

	mu      sync.Mutex
	next    int32
	streams map[int32]*Stream
}

// stopID is what epoll reports for the request to stop; streams count from 1.
const stopID = 0

// New starts a relay; Close ends it.
func New() (*Relay, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("start relay: create epoll: %w", err)
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start relay: create eventfd: %w", err), unix.Close(epoll))
	}
	null, err := unix.Open(os.DevNull, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start relay: open %s: %w", os.DevNull, err), unix.Close(stop), unix.Close(epoll))
	}
	r := &Relay{epoll: epoll, stop: stop, null: null, done: make(chan struct{}), streams: map[int32]*Stream{}}
	if err := r.watch(stopID, stop, unix.EPOLLIN); err != nil {
		r.closeAll()
		return nil, fmt.Errorf("start relay: watch eventfd: %w", err)
	}
	go r.run()
	return r, nil
}

// Add relays source, the read end of a pipe or FIFO that already has a writer,
// to sink, a FIFO opened for reading and writing (so that it outlives its
// reader). Both must be non-blocking; the stream takes them over, also on error.
func (r *Relay) Add(source, sink *os.File) (*Stream, error) {
	s, err := newStream(source, sink, r.null)
	if err != nil {
		return nil, fmt.Errorf("relay to %s: %w", sink.Name(), err)
	}
	r.mu.Lock()
	r.next++
	id := r.next
	s.forget = func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.streams, id)
	}
	r.streams[id] = s
	r.mu.Unlock()

	// Adding reports what is ready already, so the first bytes are not missed.
	s.mu.Lock()
	err = errors.Join(
		r.watch(id, s.sink, unix.EPOLLOUT),
		r.watch(id, s.source, unix.EPOLLIN))
	s.mu.Unlock()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("relay to %s: %w", sink.Name(), err), s.Close())
	}
	return s, nil
}

func (r *Relay) watch(id int32, fd int, events uint32) error {
	return unix.EpollCtl(r.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events | unix.EPOLLET, Fd: id})
}

// Close stops relaying. Bytes in sources stay there for another relay.
func (r *Relay) Close() error {
	if _, err := unix.Write(r.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		return fmt.Errorf("stop relay: %w", err)
	}
	<-r.done
	return nil
}

func (r *Relay) run() {
	defer close(r.done)
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(r.epoll, events, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return // only a closed epoll descriptor gets here
		}
		for _, e := range events[:n] {
			if e.Fd == stopID {
				r.closeAll()
				return
			}
			r.serve(e.Fd)
		}
	}
}

func (r *Relay) serve(id int32) {
	r.mu.Lock()
	s := r.streams[id]
	r.mu.Unlock()
	if s != nil {
		s.pump()
	}
}

func (r *Relay) closeAll() {
	r.mu.Lock()
	streams := slices.Collect(maps.Values(r.streams))
	r.mu.Unlock()
	for _, s := range streams {
		_ = s.Close()
	}
	_ = unix.Close(r.stop)
	_ = unix.Close(r.null)
	_ = unix.Close(r.epoll)
}
