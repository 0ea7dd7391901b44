package pidfd

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/epoll"
)

// Reaper follows any number of processes with one goroutine.
type Reaper struct {
	poll *epoll.Poll
	done chan struct{} // closed when the goroutine ended

	mu       sync.Mutex
	cond     sync.Cond           // of calling
	followed map[uint64]*process // by key
	keys     map[*os.File]uint64
	lastKey  uint64
	calling  *os.File // whose exit is being handled by the goroutine
	closed   bool
	sweep    sweep
}

type process struct {
	f    *os.File
	fd   int // of f; valid until its exit was reported or it is unfollowed
	pid  int // -1 if it had been reaped before we saw it
	exit func(Exit)
}

// NewReaper starts one. Close it.
func NewReaper() (*Reaper, error) {
	poll, err := epoll.New()
	if err != nil {
		return nil, err
	}
	r := &Reaper{
		poll:     poll,
		done:     make(chan struct{}),
		followed: map[uint64]*process{},
		keys:     map[*os.File]uint64{},
		sweep:    sweep{wake: -1},
		lastKey:  sweepKey,
	}
	r.cond.L = &r.mu
	go r.run()
	return r, nil
}

// Follow calls exit once, on the Reaper's goroutine, when the process ended;
// also if it ended before. exit must not block. A child of ours is reaped, so
// nobody else may wait for it. f remains the caller's and must stay open until
// exit is called or Unfollow returns.
func (r *Reaper) Follow(f *os.File, exit func(Exit)) error {
	return with(f, func(fd int) error {
		pid, err := Pid(fd)
		if err != nil {
			return fmt.Errorf("follow process: %w", err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.closed {
			return fmt.Errorf("follow process: reaper is closed: %w", errdefs.ErrFailedPrecondition)
		}
		if _, ok := r.keys[f]; ok {
			return fmt.Errorf("follow process: it is followed: %w", errdefs.ErrAlreadyExists)
		}
		r.lastKey++
		// The kernel wakes us at the exit and again when it is reaped, and
		// reports at once what had happened before. What cannot be settled at
		// the first is at the second: hence edges.
		if err := r.poll.Add(fd, unix.EPOLLIN|unix.EPOLLET, r.lastKey); err != nil {
			return fmt.Errorf("follow process: %w", err)
		}
		r.followed[r.lastKey] = &process{f: f, fd: fd, pid: pid, exit: exit}
		r.keys[f] = r.lastKey
		return nil
	})
}

// Unfollow forgets f. When it returns, f's exit has been handled or never will
// be. It must not be called from an exit function.
func (r *Reaper) Unfollow(f *os.File) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.calling == f {
		r.cond.Wait()
	}
	if key, ok := r.keys[f]; ok {
		r.forget(key)
	}
}

// Close ends the Reaper. Processes run on, and no exit function is called
// after it returned. It must not be called from one either.
func (r *Reaper) Close() error {
	r.mu.Lock()
	closed := r.closed
	r.closed = true
	r.mu.Unlock()
	if closed {
		return nil
	}
	err := r.poll.Close()
	<-r.done
	return errors.Join(err, r.stopSweep())
}

func (r *Reaper) run() {
	defer close(r.done)
	events := make([]epoll.Event, 0, 16)
	for {
		var err error
		if events, err = r.poll.Wait(events); err != nil {
			return // closed
		}
		for _, e := range events {
			if e.Key == sweepKey {
				r.orphans()
				continue
			}
			r.settle(e.Key)
		}
	}
}

// settle reports the exit of a process if it is known by now. It runs on the
// Reaper's goroutine alone.
func (r *Reaper) settle(key uint64) {
	r.mu.Lock()
	p := r.followed[key]
	if p == nil || r.closed {
		r.mu.Unlock()
		return
	}
	r.calling = p.f
	r.mu.Unlock()

	exit, ok := outcome(p.fd)

	r.mu.Lock()
	if ok {
		r.forget(key)
	}
	r.mu.Unlock()
	if ok {
		p.exit(exit)
	}
	r.mu.Lock()
	r.calling = nil
	r.cond.Broadcast()
	r.mu.Unlock()
}

func (r *Reaper) forget(key uint64) {
	p := r.followed[key]
	_ = r.poll.Remove(p.fd) // fails if f is closed already, which ends the watch too
	delete(r.followed, key)
	delete(r.keys, p.f)
}

// outcome reaps the process, or asks how it ended. ok is false if that is not
// known yet.
func outcome(fd int) (Exit, bool) {
	c, err := wait(unix.P_PIDFD, fd, 0)
	switch {
	case err == nil && c.pid != 0:
		return newExit(c.waitStatus()), true
	case err == nil: // a debugger has it: its leave wakes us again
		return Exit{}, false
	case err != unix.ECHILD:
		return unknownExit(fmt.Errorf("wait for process: %w", err)), true
	}
	if ws, ok := zombieStatus(fd); ok {
		return newExit(ws), true
	}
	ws, err := exitInfo(fd)
	if err == nil {
		return newExit(ws), true
	}
	if errors.Is(err, ErrStillRunning) {
		return Exit{}, false // its parent's wait wakes us again
	}
	return unknownExit(err), true
}
