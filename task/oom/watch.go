package oom

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/epoll"
)

// addV1 registers an eventfd: cgroup-v1/memory.rst, "OOM Control".
func (w *Watcher) addV1(v *watch) error {
	file, err := os.Open(filepath.Join(v.counter.dir, v1File))
	if err != nil {
		return missing(err)
	}
	defer file.Close()
	control, err := os.OpenFile(filepath.Join(v.counter.dir, "cgroup.event_control"), os.O_WRONLY, 0)
	if err != nil {
		return missing(err)
	}
	defer control.Close()
	if v.eventfd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("make eventfd: %w", err)
	}
	if _, err := fmt.Fprintf(control, "%d %d", v.eventfd, file.Fd()); err != nil {
		return fmt.Errorf("register eventfd: %w", err)
	}
	w.lastKey++
	v.key = w.lastKey
	if err := w.poll.Add(v.eventfd, unix.EPOLLIN|unix.EPOLLET, v.key); err != nil {
		return err
	}
	w.keys[v.key] = v
	return nil
}

func (w *Watcher) addV2(v *watch) error {
	wd, err := w.inotify.Add(filepath.Join(v.counter.dir, v2File), unix.IN_MODIFY)
	if err != nil {
		if _, serr := os.Stat(v.counter.dir); os.IsNotExist(err) && serr == nil {
			return fmt.Errorf("%s has no memory controller: %w", v.counter.dir, errdefs.ErrNotImplemented)
		}
		return missing(err)
	}
	if other := w.wds[wd]; other != nil { // inotify has one watch for a file
		return fmt.Errorf("%s is watched for %s: %w", v.counter.dir, other.id, errdefs.ErrAlreadyExists)
	}
	v.wd = wd
	w.wds[wd] = v
	return nil
}

func missing(err error) error {
	if os.IsNotExist(err) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	return err
}

func (w *Watcher) run() {
	defer close(w.done)
	events := make([]epoll.Event, 0, 16)
	var late []*watch // v1, whose kill we wait for
	for {
		var err error
		if events, err = w.poll.Wait(events); err != nil {
			return // closed
		}
		for _, e := range events {
			switch e.Key {
			case inotifyKey:
				w.modified()
			case clockKey:
				late = w.again(late)
			default:
				late = w.signalled(e.Key, late)
			}
		}
	}
}

// The victim is picked right after the event of v1; that it is killed takes
// longer on a busy machine. So we look at growing intervals, for two seconds
// in all.
const (
	firstLook = time.Millisecond
	looks     = 11
)

// signalled handles an eventfd of v1. Its count says nothing, and as an edge
// it need not be read.
func (w *Watcher) signalled(key uint64, late []*watch) []*watch {
	w.mu.Lock()
	v := w.keys[key]
	w.mu.Unlock()
	if v == nil || w.look(v) {
		return late
	}
	if v.looks == 0 {
		late = append(late, v)
	}
	v.looks = 1 // from the beginning, if we wait for an earlier one
	v.due = time.Now().Add(firstLook)
	w.clock.set(firstLook)
	return late
}

// again looks at those that are due, and sets the clock for the rest.
func (w *Watcher) again(late []*watch) []*watch {
	w.clock.clear()
	now := time.Now()
	var rest []*watch
	var next time.Time
	for _, v := range late {
		if !now.Before(v.due) {
			if w.look(v) || v.looks == looks {
				v.looks = 0
				continue
			}
			v.due = now.Add(firstLook << v.looks)
			v.looks++
		}
		if next.IsZero() || v.due.Before(next) {
			next = v.due
		}
		rest = append(rest, v)
	}
	if len(rest) > 0 {
		w.clock.set(max(time.Until(next), firstLook))
	}
	return rest
}

// look tells of kills since the last look. It returns true if there is nothing
// more to wait for.
func (w *Watcher) look(v *watch) bool {
	n, err := v.counter.kills()
	w.mu.Lock()
	if w.watches[v.id] != v || w.closed {
		w.mu.Unlock()
		return true
	}
	if err != nil { // removed, as a rule
		gone := errdefs.IsNotFound(err)
		if gone {
			w.forget(v)
		}
		w.mu.Unlock()
		return gone
	}
	more := n > v.told
	v.told = n // less, when cgroups below were removed
	if !more {
		w.mu.Unlock()
		return false
	}
	w.calling = v
	w.mu.Unlock()

	w.event(v.id)

	w.mu.Lock()
	w.calling = nil
	w.cond.Broadcast()
	w.mu.Unlock()
	return true
}

// modified handles inotify, of v2.
func (w *Watcher) modified() {
	var buf [4096]byte
	for wd, mask := range w.inotify.Read(buf[:]) {
		if mask&unix.IN_Q_OVERFLOW != 0 {
			w.all()
			continue
		}
		w.mu.Lock()
		v := w.wds[wd]
		if v != nil && mask&unix.IN_IGNORED != 0 { // the cgroup was removed
			w.forget(v)
			v = nil
		}
		w.mu.Unlock()
		if v != nil {
			w.look(v)
		}
	}
}

// all looks at every cgroup of v2, after events were lost.
func (w *Watcher) all() {
	w.mu.Lock()
	var list []*watch
	for _, v := range w.wds {
		list = append(list, v)
	}
	w.mu.Unlock()
	for _, v := range list {
		w.look(v)
	}
}
