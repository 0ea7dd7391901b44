package tasks

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// holdOutput keeps the FIFOs open that the CRI plugin reads and the agent
// writes. Without it the death of the agent would be the end of the output to
// the CRI plugin, although the container runs on and another agent comes.
func (t *Task) holdOutput() error {
	if !t.saved.Retain {
		return nil
	}
	for i, path := range []string{t.saved.Stdout, t.saved.Stderr} {
		if path == "" {
			continue
		}
		// For reading and writing: then it waits for nobody to open the rest.
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open output %s of %s: %w", path, t, err)
		}
		t.mu.Lock()
		t.outputs[i], fd = fd, t.outputs[i]
		t.mu.Unlock()
		closeFD(fd)
	}
	return nil
}

// letOutput lets the output end with what the agent still writes.
func (t *Task) letOutput() {
	t.mu.Lock()
	fds := t.outputs
	t.outputs = none
	t.mu.Unlock()
	for _, fd := range fds {
		closeFD(fd)
	}
}

// none is what Task.outputs holds when nothing is open.
var none = [2]int{-1, -1}

func closeFD(fd int) {
	if fd >= 0 {
		_ = unix.Close(fd)
	}
}
