package stdio

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
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
	inotify int

	mu      sync.Mutex
	outputs map[int32]int // inotify watch -> write end
}

func newKept() (*kept, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make inotify instance: %w", err)
	}
	return &kept{inotify: fd, outputs: map[int32]int{}}, nil
}

// keep takes over w, a write end of a FIFO, and closes it once the FIFO is
// empty. It returns a handle for drop, or 0 if it is empty already.
func (k *kept) keep(w int) (int32, error) {
	if empty(w) {
		return 0, unix.Close(w)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	watch, err := unix.InotifyAddWatch(k.inotify, "/proc/self/fd/"+strconv.Itoa(w), unix.IN_ACCESS)
	if err != nil {
		unix.Close(w)
		return 0, fmt.Errorf("keep unread output: watch FIFO: %w", err)
	}
	if old, ok := k.outputs[int32(watch)]; ok { // the same FIFO, by another process
		unix.Close(old)
	}
	k.outputs[int32(watch)] = w
	if empty(w) { // read before the watch
		k.release(int32(watch))
		return 0, nil
	}
	return int32(watch), nil
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
	_, _ = unix.InotifyRmWatch(k.inotify, uint32(watch))
	unix.Close(w)
}

// step implements copier.
func (k *kept) step(_ uint64, buf []byte) {
	for {
		n, err := read(k.inotify, buf)
		if n <= 0 || err != nil {
			return
		}
		k.mu.Lock()
		for watch, mask := range records(buf[:n]) {
			if mask&unix.IN_Q_OVERFLOW != 0 {
				k.all()
			} else if w, ok := k.outputs[watch]; ok && empty(w) {
				k.release(watch)
			}
		}
		k.mu.Unlock()
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
	return unix.Close(k.inotify)
}

func empty(pipe int) bool {
	n, err := unix.IoctlGetInt(pipe, fionread)
	return err != nil || n == 0
}

// records yields watch and mask of what was read from inotify: inotify(7).
func records(b []byte) func(yield func(int32, uint32) bool) {
	return func(yield func(int32, uint32) bool) {
		for len(b) >= unix.SizeofInotifyEvent {
			watch := int32(binary.NativeEndian.Uint32(b[0:]))
			mask := binary.NativeEndian.Uint32(b[4:])
			size := unix.SizeofInotifyEvent + uint64(binary.NativeEndian.Uint32(b[12:]))
			if !yield(watch, mask) || size > uint64(len(b)) {
				return
			}
			b = b[size:]
		}
	}
}
