package guest

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// await calls ready until it is true or an error: now, and whenever something
// changes about the guest's devices.
func await(ctx context.Context, ready func() (bool, error)) error {
	events, err := subscribe()
	if err != nil {
		return err
	}
	defer events.Close()
	stop := context.AfterFunc(ctx, func() { _ = events.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	b := make([]byte, 2048) // UEVENT_BUFFER_SIZE; what it says does not matter
	for {
		if ok, err := ready(); ok || err != nil {
			return err
		}
		_, err := events.Read(b)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if pe, ok := err.(*os.PathError); err != nil && !(ok && pe.Err == unix.ENOBUFS) { // some were lost: look
			return fmt.Errorf("wait for a device: %w", err)
		}
	}
}

// subscribe opens the kernel's announcements of devices.
func subscribe() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("open device events: %w", err)
	}
	const kernel = 1 // the group that the kernel sends to, and nobody else
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernel}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("subscribe to device events: %w", err)
	}
	return os.NewFile(uintptr(fd), "device events"), nil
}
