package vmm

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

const (
	memoryPressure = "/proc/pressure/memory"

	// pressureTrigger is when memory is short: somebody waits for it for a tenth
	// of two seconds, in microseconds. Windows of other lengths need
	// CAP_SYS_RESOURCE. See Documentation/accounting/psi.rst of Linux.
	pressureTrigger = "some 200000 2000000\x00"

	// spareShare of all memory has to be available beside what a machine takes
	// before one is made for the pool.
	spareShare = 10
)

// watch gives machines back whenever the kernel says that memory is short. Where
// it does not, there is no more than enough.
func (p *pool) watch() {
	if err := p.await(); err != nil && p.store.ctx.Err() == nil {
		log.L.WithError(err).Warn("the kernel does not tell when memory gets short: the pool of machines is not given back then, only not filled")
	}
}

// await returns when the store is closed. It has a thread of its own: what the
// kernel tells here is told once, and is lost to those who look by an epoll that
// is itself polled.
func (p *pool) await() error {
	fd, err := unix.Open(memoryPressure, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: memoryPressure, Err: err}
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(pressureTrigger)); err != nil {
		return &os.PathError{Op: "write", Path: memoryPressure, Err: err}
	}
	end, closed, err := os.Pipe()
	if err != nil {
		return err
	}
	defer end.Close()
	p.store.work.Go(func() {
		<-p.store.ctx.Done()
		closed.Close()
	})
	polled := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}, {Fd: int32(end.Fd()), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(polled, -1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return os.NewSyscallError("poll", err)
		case polled[1].Revents != 0:
			return nil
		case polled[0].Revents&unix.POLLERR != 0:
			return fmt.Errorf("%s is gone: %w", memoryPressure, errdefs.ErrUnavailable)
		case polled[0].Revents&unix.POLLPRI != 0:
			p.squeeze()
		}
	}
}

// enough says whether there is memory for a machine of that many bytes.
func enough(machine uint64) error {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return err
	}
	defer f.Close()
	return enoughOf(f, machine)
}

func enoughOf(meminfo io.Reader, machine uint64) error {
	var total, available uint64
	lines := bufio.NewScanner(meminfo)
	for lines.Scan() {
		for name, to := range map[string]*uint64{"MemTotal:": &total, "MemAvailable:": &available} {
			if rest, ok := strings.CutPrefix(lines.Text(), name); ok {
				if _, err := fmt.Sscan(rest, to); err != nil {
					return fmt.Errorf("read /proc/meminfo: %q: %w", lines.Text(), err)
				}
				*to <<= 10
			}
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	if want := machine + total/spareShare; available < want {
		return fmt.Errorf("%d MiB of memory are available, and %d MiB should be: %w", available>>20, want>>20, errdefs.ErrResourceExhausted)
	}
	return nil
}
