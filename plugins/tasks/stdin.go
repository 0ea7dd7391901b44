package tasks

import (
	"golang.org/x/sys/unix"
)

// holdStdin keeps a write end of the process's stdin until CloseIO or its
// exit. The agent has one too, but may die, and the process would see an end
// that nobody sent. If there is no FIFO, or nobody reads it, there is nothing
// to keep.
func (p *process) holdStdin() {
	if p.stdio.Stdin == "" {
		return
	}
	fd, err := unix.Open(p.stdio.Stdin, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return
	}
	var stat unix.Stat_t
	fifo := unix.Fstat(fd, &stat) == nil && stat.Mode&unix.S_IFMT == unix.S_IFIFO
	p.mu.Lock()
	keep := fifo && !p.closed && p.stdin < 0
	if keep {
		p.stdin = fd
	}
	p.mu.Unlock()
	if !keep {
		unix.Close(fd)
	}
}

// letStdin lets stdin end once what is in it is read.
func (p *process) letStdin() {
	p.mu.Lock()
	fd := p.stdin
	p.stdin, p.closed = -1, true
	p.mu.Unlock()
	if fd >= 0 {
		unix.Close(fd)
	}
}
