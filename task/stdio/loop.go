package stdio

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/epoll"
)

// loop is the one goroutine that copies, and that sees kept output leave.
type loop struct {
	poll *epoll.Poll
	done chan struct{}

	mu      sync.Mutex
	cond    sync.Cond // of serving
	copiers map[uint64]copier
	called  []uint64 // keys of copiers to be stepped
	lastKey uint64
	serving uint64 // key of the copier at work, 0 if none
	wake    int    // eventfd, under key wakeKey; it is written to after called
}

const wakeKey = 0

// copier has its descriptors watched for edges of everything. step does what can be done without blocking; it is told to come again by rearm, or by an
// edge. buf is free to use during step.
type copier interface {
	step(key uint64, buf []byte)
}

// bufferSize is what one step reads at once at most. Larger ones measured no
// faster; it exists once.
const bufferSize = 32 << 10

const edges = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLET

func newLoop() (*loop, error) {
	poll, err := epoll.New()
	if err != nil {
		return nil, err
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make eventfd: %w", err), poll.Close())
	}
	l := &loop{poll: poll, done: make(chan struct{}), copiers: map[uint64]copier{}, wake: wake}
	l.cond.L = &l.mu
	if err := poll.Add(wake, unix.EPOLLIN|unix.EPOLLET, wakeKey); err != nil {
		return nil, errors.Join(err, unix.Close(wake), poll.Close())
	}
	go l.run()
	return l, nil
}

func (l *loop) run() {
	defer close(l.done)
	buf := make([]byte, bufferSize)
	events := make([]epoll.Event, 0, 32)
	for {
		var err error
		if events, err = l.poll.Wait(events); err != nil {
			return // closed
		}
		for _, e := range events {
			if e.Key != wakeKey {
				l.step(e.Key, buf)
				continue
			}
			for _, key := range l.calls() {
				l.step(key, buf)
			}
		}
	}
}

func (l *loop) step(key uint64, buf []byte) {
	if c := l.serve(key); c != nil {
		c.step(key, buf)
		l.served()
	}
}

func (l *loop) calls() []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	keys := l.called
	l.called = nil
	return keys
}

// call has the copier stepped whatever its descriptors are.
func (l *loop) call(key uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.called = append(l.called, key)
	_, _ = unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

func (l *loop) serve(key uint64) copier {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.copiers[key]
	if c != nil {
		l.serving = key
	}
	return c
}

func (l *loop) served() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.serving = 0
	l.cond.Broadcast()
}

// add has c stepped when one of fds changes, and once soon. Regular files
// cannot be watched, nor need they.
func (l *loop) add(c copier, fds ...int) (key uint64, err error) {
	l.mu.Lock()
	l.lastKey++
	key = l.lastKey
	l.copiers[key] = c
	l.mu.Unlock()
	for i, fd := range fds {
		if fd < 0 {
			continue
		}
		err = l.poll.Add(fd, edges, key)
		if err == unix.EPERM {
			err = nil
		}
		if err != nil {
			for _, fd := range fds[:i] {
				_ = l.poll.Remove(fd)
			}
			l.forget(key)
			return 0, err
		}
	}
	return key, nil
}

// rearm has the copier stepped again if fd is ready.
func (l *loop) rearm(fd int, key uint64) { _ = l.poll.Modify(fd, edges, key) }

// forget ends a copier. When it returns, no step is under way and its
// descriptors may be closed, which ends their watch. It must not be called from
// a step.
func (l *loop) forget(key uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.copiers, key)
	for l.serving == key {
		l.cond.Wait()
	}
}

func (l *loop) close() error {
	err := l.poll.Close()
	<-l.done
	return errors.Join(err, unix.Close(l.wake))
}
