package tasks

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/epoll"
	"github.com/containerd-kuasar/containerd-kuasar/internal/inotify"
)

// veilTime is when veils are lifted that nobody lifted. The CRI plugin opens
// its containers' output at once after the daemon's start.
const veilTime = 30 * time.Second

// veils hide from clients that restored tasks have exited, and keep the tasks'
// output, until somebody has opened that.
//
// After a restart the CRI plugin opens a container's output in the background,
// and gives up at once if the container turns out to have exited. What it did
// not read by then would be lost: a FIFO that nobody has open is empty. So its
// containers run on for it until it has opened their output; of that, inotify
// tells. A container that had exited before that has nothing in its FIFOs, see
// completeLog, and needs no veil.
type veils struct {
	inotify *inotify.Instance
	poll    *epoll.Poll

	mu    sync.Mutex
	tasks map[int32]*Task // by the watch of a FIFO that was not opened yet
}

// veil is one task's.
type veil struct {
	fifos []int // both ends of each, opened
	left  int   // of these, how many nobody has opened since
}

func newVeils() (*veils, error) {
	i, err := inotify.New()
	if err != nil {
		return nil, err
	}
	p, err := epoll.New()
	if err == nil {
		err = p.Add(i.Fd(), unix.EPOLLIN, 0)
	}
	if err != nil {
		return nil, errors.Join(err, i.Close())
	}
	v := &veils{inotify: i, poll: p, tasks: map[int32]*Task{}}
	go v.run()
	return v, nil
}

// run lifts veils until Close.
func (v *veils) run() {
	defer v.inotify.Close()
	buf := make([]byte, 4096)
	events := make([]epoll.Event, 1)
	for {
		if _, err := v.poll.Wait(events[:0]); err != nil {
			return
		}
		for watch := range v.inotify.Read(buf) {
			v.opened(watch)
		}
	}
}

func (v *veils) opened(watch int32) {
	v.mu.Lock()
	t := v.tasks[watch]
	delete(v.tasks, watch)
	v.mu.Unlock()
	if t == nil {
		return
	}
	v.inotify.Remove(watch)
	t.mu.Lock()
	last := false
	if t.veil != nil {
		t.veil.left--
		last = t.veil.left == 0
	}
	t.mu.Unlock()
	if last {
		t.uncover()
	}
}

// close stops looking. Veils stay.
func (v *veils) close() error { return v.poll.Close() }

// cover puts a veil on a task, which look lifts in time.
func (v *veils) cover(t *Task) error {
	one := &veil{}
	for _, path := range t.outputs() {
		// For reading and writing: then it waits for nobody to open the rest.
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		if err != nil {
			one.close()
			return fmt.Errorf("keep output %s of %s: %w", path, t, err)
		}
		one.fifos = append(one.fifos, fd)
	}
	if one.left = len(one.fifos); one.left == 0 {
		return nil
	}
	t.mu.Lock()
	t.veil = one
	t.mu.Unlock()
	t.process.mu.Lock()
	t.process.veiled = true
	t.process.mu.Unlock()
	return nil
}

// look begins to look for who opens a task's output. All that this daemon opens
// of it must be open by then.
func (v *veils) look(t *Task) error {
	if !t.covered() {
		return nil
	}
	for _, path := range t.outputs() {
		if err := v.watch(path, t); err != nil {
			t.uncover()
			return fmt.Errorf("keep output of %s: %w", t, err)
		}
	}
	return nil
}

// outputs are the FIFOs of a task's output.
func (t *Task) outputs() []string {
	return slices.DeleteFunc([]string{t.stdio.Stdout, t.stdio.Stderr}, func(path string) bool { return path == "" })
}

func (v *veils) watch(path string, t *Task) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	watch, err := v.inotify.Add(path, unix.IN_OPEN)
	if err == nil {
		v.tasks[watch] = t
	}
	return err
}

func (one *veil) close() {
	for _, fd := range one.fifos {
		unix.Close(fd)
	}
}

func (t *Task) covered() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.veil != nil
}

// uncover lifts the veil, if there is one.
func (t *Task) uncover() {
	t.mu.Lock()
	one := t.veil
	t.veil = nil
	t.mu.Unlock()
	if one == nil {
		return
	}
	one.close()
	t.process.mu.Lock()
	t.process.veiled = false
	pending := t.process.pending
	t.process.mu.Unlock()
	if pending != nil {
		t.process.exited(0, *pending)
	}
}

// gone says that the first process has exited, though that may be hidden.
func (t *Task) gone() bool {
	t.process.mu.Lock()
	defer t.process.mu.Unlock()
	return t.process.pending != nil
}
