// Package oom tells when the kernel kills a process of a container because the
// container is at its memory limit.
//
// Both versions of cgroups count these kills, and the count alone decides;
// what wakes us is only a reason to look:
//
//   - v1: an eventfd at memory.oom_control. The kernel writes to it before it
//     picks a victim, to the cgroup at its limit and to all below it, and when
//     the cgroup is removed. So the kill may come a moment after we look, or
//     elsewhere, or never.
//   - v2: inotify on memory.events, after the count went up.
package oom

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/cgroup"
	"github.com/containerd-kuasar/containerd-kuasar/internal/epoll"
	"github.com/containerd-kuasar/containerd-kuasar/internal/inotify"
)

// counter is the file with the line oom_kill of one cgroup.
type counter struct {
	dir, name string
}

const (
	v1File = "memory.oom_control" // its oom_kill (Linux 4.13) is the cgroup's alone
	v2File = "memory.events"      // its oom_kill includes the cgroups below
)

// find takes the paths as libcontainer has them: of v1 by controller, of v2
// under "".
func find(paths map[string]string) (counter, error) {
	if dir := paths["memory"]; dir != "" {
		return counter{dir, v1File}, nil
	}
	if dir := paths[""]; dir != "" {
		return counter{dir, v2File}, nil
	}
	return counter{}, fmt.Errorf("cgroup has no memory controller: %w", errdefs.ErrNotImplemented)
}

func (c counter) kills() (uint64, error) {
	n, err := c.own(c.dir)
	if err != nil || c.name == v2File {
		return n, err
	}
	// A container that runs containers, or systemd.
	return n + c.below(c.dir, new(int)), nil
}

func (c counter) own(dir string) (uint64, error) {
	var buf [512]byte
	b, err := cgroup.Read(dir, c.name, buf[:])
	if err != nil {
		return 0, err
	}
	for key, value := range cgroup.Keyed(b) {
		if string(key) == "oom_kill" {
			return value, nil
		}
	}
	return 0, fmt.Errorf("%s/%s counts no kills, as Linux 4.13 does: %w", dir, c.name, errdefs.ErrNotImplemented)
}

// most bounds how many cgroups of one container are looked at.
const most = 1000

func (c counter) below(dir string, seen *int) (sum uint64) {
	children, _ := os.ReadDir(dir) // some go while we look
	for _, e := range children {
		if !e.IsDir() {
			continue
		}
		if *seen++; *seen > most {
			return sum
		}
		child := filepath.Join(dir, e.Name())
		n, _ := c.own(child)
		sum += n + c.below(child, seen)
	}
	return sum
}

// Kills is how many processes of the cgroup and of those below it the kernel
// has killed for want of memory since they were made. Once the cgroup is gone it is
// errdefs.ErrNotFound; without a memory controller errdefs.ErrNotImplemented.
func Kills(paths map[string]string) (uint64, error) {
	c, err := find(paths)
	if err != nil {
		return 0, fmt.Errorf("count kills: %w", err)
	}
	n, err := c.kills()
	if err != nil {
		return 0, fmt.Errorf("count kills: %w", err)
	}
	return n, nil
}

// Watcher watches any number of cgroups with one goroutine.
type Watcher struct {
	event   func(id string)
	poll    *epoll.Poll
	inotify *inotify.Instance
	clock   *clock
	done    chan struct{} // closed when the goroutine ended

	mu      sync.Mutex
	cond    sync.Cond         // of calling
	watches map[string]*watch // by id
	keys    map[uint64]*watch // v1, by epoll key
	wds     map[int32]*watch  // v2, by inotify watch
	lastKey uint64
	calling *watch // whose event is being told
	closed  bool
}

type watch struct {
	id      string
	counter counter
	told    uint64 // kills that were counted when we last looked
	eventfd int    // v1
	key     uint64
	wd      int32 // v2

	// v1, of the goroutine: how often it looked since the event, 0 if it does
	// not wait for a kill, and when it looks again.
	looks int
	due   time.Time
}

// keys of the other descriptors in epoll; those of watches are higher.
const (
	inotifyKey = iota
	clockKey
)

// NewWatcher starts one. event is called on its goroutine and must not block.
// Some kills at once may be one event.
func NewWatcher(event func(id string)) (*Watcher, error) {
	w := &Watcher{
		event:   event,
		done:    make(chan struct{}),
		watches: map[string]*watch{},
		keys:    map[uint64]*watch{},
		wds:     map[int32]*watch{},
		lastKey: clockKey,
	}
	w.cond.L = &w.mu
	if err := w.open(); err != nil {
		w.closeAll()
		return nil, fmt.Errorf("watch for kills: %w", err)
	}
	go w.run()
	return w, nil
}

func (w *Watcher) open() (err error) {
	if w.poll, err = epoll.New(); err != nil {
		return err
	}
	if w.clock, err = newClock(); err != nil {
		return err
	}
	if w.inotify, err = inotify.New(); err != nil {
		return err
	}
	if err := w.poll.Add(w.inotify.Fd(), unix.EPOLLIN, inotifyKey); err != nil {
		return err
	}
	return w.poll.Add(w.clock.fd, unix.EPOLLIN, clockKey)
}

func (w *Watcher) closeAll() {
	if w.poll != nil {
		_ = w.poll.Close()
	}
	if w.clock != nil {
		w.clock.close()
	}
	if w.inotify != nil {
		_ = w.inotify.Close()
	}
}

// Add watches a container's cgroup from now on. A cgroup that is not there is
// errdefs.ErrNotFound, one without a memory controller
// errdefs.ErrNotImplemented, an id that is watched errdefs.ErrAlreadyExists.
func (w *Watcher) Add(id string, paths map[string]string) error {
	c, err := find(paths)
	if err != nil {
		return fmt.Errorf("watch %s for kills: %w", id, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return fmt.Errorf("watch %s for kills: watcher is closed: %w", id, errdefs.ErrFailedPrecondition)
	}
	if _, ok := w.watches[id]; ok {
		return fmt.Errorf("watch %s for kills: it is watched: %w", id, errdefs.ErrAlreadyExists)
	}
	v := &watch{id: id, counter: c, eventfd: -1, wd: -1}
	if c.name == v1File {
		err = w.addV1(v)
	} else {
		err = w.addV2(v)
	}
	if err == nil {
		w.watches[id] = v
		// Counted after the watch began: no kill is missed. One in between
		// is not told twice.
		v.told, err = c.kills()
	}
	if err != nil {
		w.forget(v)
		return fmt.Errorf("watch %s for kills: %w", id, err)
	}
	return nil
}

// Remove forgets a container. When it returns, no event for it comes any more.
// An unknown one is nothing. It must not be called from an event.
func (w *Watcher) Remove(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	v := w.watches[id]
	if v == nil {
		return
	}
	for w.calling == v {
		w.cond.Wait()
	}
	w.forget(v)
}

func (w *Watcher) forget(v *watch) {
	if v.eventfd >= 0 {
		_ = unix.Close(v.eventfd) // which the kernel takes as the end of the registration
		v.eventfd = -1
	}
	if v.wd >= 0 {
		w.inotify.Remove(v.wd)
		delete(w.wds, v.wd)
		v.wd = -1
	}
	delete(w.keys, v.key)
	if w.watches[v.id] == v {
		delete(w.watches, v.id)
	}
}

// Close ends the Watcher; no event comes after it returned. It must not be
// called from an event.
func (w *Watcher) Close() error {
	w.mu.Lock()
	closed := w.closed
	w.closed = true
	w.mu.Unlock()
	if closed {
		return nil
	}
	err := w.poll.Close()
	<-w.done
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, v := range w.watches {
		w.forget(v)
	}
	w.closeAll()
	return err
}
