package pidfd

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"
)

// sweepKey is the epoll key of sweep.wake; processes have higher ones.
const sweepKey = 0

// sweep is the part of the Reaper that takes in orphans; under Reaper.mu.
type sweep struct {
	wake    int // eventfd, -1 without Sweep
	making  int // Begins without their end
	pending bool
	signals chan os.Signal
	done    chan struct{} // closed when the goroutine that waits for signals ended
}

// Sweep makes the Reaper collect, beside those it follows, every other child
// that exits: the orphans that a subreaper (PR_SET_CHILD_SUBREAPER of prctl(2))
// or the first process of a pid namespace is left with. Children of our own
// making are safe from it between Begin and its end, and once followed. Call it
// once.
func (r *Reaper) Sweep() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.sweep.wake >= 0 {
		return fmt.Errorf("sweep orphans: reaper is closed or sweeps already: %w", errdefs.ErrFailedPrecondition)
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("sweep orphans: make eventfd: %w", err)
	}
	if err := r.poll.Add(fd, unix.EPOLLIN|unix.EPOLLET, sweepKey); err != nil {
		unix.Close(fd)
		return fmt.Errorf("sweep orphans: %w", err)
	}
	r.sweep.wake = fd
	r.sweep.done = make(chan struct{})
	r.sweep.signals = make(chan os.Signal, 1) // one stands for any number
	signal.Notify(r.sweep.signals, unix.SIGCHLD)
	go func() {
		defer close(r.sweep.done)
		for range r.sweep.signals {
			r.poke()
		}
	}()
	r.poke() // those that exited before
	return nil
}

// Begin keeps Sweep from children that the caller makes until it calls end:
// those that it waits for itself, and those that it follows before end.
func (r *Reaper) Begin() (end func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sweep.making++
	return sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.sweep.making--
		if r.sweep.making == 0 && r.sweep.pending {
			r.sweep.pending = false
			r.poke()
		}
	})
}

// poke makes the Reaper's goroutine call orphans. The eventfd is closed only
// after whoever pokes is gone.
func (r *Reaper) poke() {
	if r.sweep.wake >= 0 {
		_, _ = unix.Write(r.sweep.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

// orphans reaps children that exited until one is found that a Begin may
// protect. It runs on the Reaper's goroutine, the only one that reaps here.
func (r *Reaper) orphans() {
	for {
		c, err := wait(unix.P_ALL, 0, unix.WNOWAIT)
		if err != nil || c.pid == 0 {
			return
		}
		// The order matters: this child had exited before we look who is
		// making or following. One that somebody made and not yet followed
		// thus has its Begin counted here.
		key, followed, making := r.owner(int(c.pid))
		switch {
		case followed:
			r.settle(key)
			if again, _ := wait(unix.P_PID, int(c.pid), unix.WNOWAIT); again.pid != 0 {
				return // it would come up for ever
			}
		case making:
			return
		default:
			_, _ = wait(unix.P_PID, int(c.pid), 0)
		}
	}
}

func (r *Reaper) owner(pid int) (key uint64, followed, making bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, p := range r.followed {
		if p.pid == pid {
			return key, true, false
		}
	}
	if r.sweep.making > 0 {
		r.sweep.pending = true
		return 0, false, true
	}
	return 0, false, false
}

// stopSweep is called once, after the Reaper's goroutine ended.
func (r *Reaper) stopSweep() error {
	r.mu.Lock()
	s := r.sweep
	r.mu.Unlock()
	if s.wake < 0 {
		return nil
	}
	signal.Stop(s.signals)
	close(s.signals)
	<-s.done
	r.mu.Lock()
	r.sweep.wake = -1
	r.mu.Unlock()
	return errors.Join(unix.Close(s.wake))
}
