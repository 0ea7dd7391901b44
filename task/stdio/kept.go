package stdio

import (
	"fmt"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/inotify"
)

// fionread asks how many bytes a pipe holds. FIONREAD and TIOCINQ are the same
// number on Linux (ioctl_tty(2)), and only the latter has a name.
const fionread = unix.TIOCINQ

// kept holds the output of ended processes until it was read.
//
// A reader that opens the FIFO now would wait for a writer. So a write end is
// held: the reader gets in, reads, and would wait for more. At the read that
// empties the FIFO, of which inotify tells, the write end is closed: the reader
// sees the end. A reader that was there all along sees the same.
type kept struct {
	inotify *inotify.Instance

	mu      sync.Mutex
	outputs map[int32]int // inotify watch -> write end
}

func newKept() (*kept, error) {
	i, err := inotify.New()
	if err != nil {
		return nil, err
	}
	return &kept{inotify: i, outputs: map[int32]int{}}, nil
}

// keep takes over w, a write end of a FIFO, and closes it once the FIFO is
// empty. It returns a handle for drop, or 0 if it is empty already.
func (k *kept) keep(w int) (int32, error) {
	if empty(w) {
		return 0, unix.Close(w)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	watch, err := k.inotify.Add("/proc/self/fd/"+strconv.Itoa(w), unix.IN_ACCESS)
	if err != nil {
		unix.Close(w)
		return 0, fmt.Errorf("keep unread output: %w", err)
	}
	if old, ok := k.outputs[watch]; ok { // the same FIFO, by another process
		unix.Close(old)
	}
	k.outputs[watch] = w
	if empty(w) { // read before the watch
		k.release(watch)
		return 0, nil
	}
	return watch, nil
}

// drop closes the write end, whether or not all was read.
func (k *kept) drop(watch int32) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.release(watch)
}

func (k *kept) release(watch int32) {
	w, ok := k.outputs[watch]
	if !ok {
		return
	}
	delete(k.outputs, watch)
	k.inotify.Remove(watch)
	unix.Close(w)
}

// step implements copier.
func (k *kept) step(_ uint64, buf []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for watch, mask := range k.inotify.Read(buf) {
		if mask&unix.IN_Q_OVERFLOW != 0 {
			k.all()
		} else if w, ok := k.outputs[watch]; ok && empty(w) {
			k.release(watch)
		}
	}
}

// all looks at every FIFO, after events were lost.
func (k *kept) all() {
	for watch, w := range k.outputs {
		if empty(w) {
			k.release(watch)
		}
	}
}

func (k *kept) close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for watch := range k.outputs {
		k.release(watch)
	}
	return k.inotify.Close()
}

func empty(pipe int) bool {
	n, err := unix.IoctlGetInt(pipe, fionread)
	return err != nil || n == 0
}
