package oom

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// clock is a timerfd(2): a timer that epoll knows.
type clock struct{ fd int }

func newClock() (*clock, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make timer: %w", err)
	}
	return &clock{fd}, nil
}

// set rings once, d from now, instead of what was set before.
func (c *clock) set(d time.Duration) {
	_ = unix.TimerfdSettime(c.fd, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}, nil)
}

// clear ends the ringing.
func (c *clock) clear() {
	var b [8]byte
	_, _ = unix.Read(c.fd, b[:])
}

func (c *clock) close() { _ = unix.Close(c.fd) }
