package console

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// recordSize is more than any record of the kernel's log (CONSOLE_EXT_LOG_MAX
// of the kernel), in bytes.
const recordSize = 8 << 10

func dmesg(ctx context.Context, args []string, out io.Writer) error {
	follow := len(args) > 0
	if follow && args[0] != "-f" {
		return fmt.Errorf("unknown option %q, there is -f: %w", args[0], errdefs.ErrInvalidArgument)
	}
	// In blocking mode it would not be known where what there is ends.
	f, err := os.OpenFile("/dev/kmsg", os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return class(err)
	}
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	b := make([]byte, recordSize)
	for ctx.Err() == nil {
		n, end, err := next(raw, b, follow)
		if err != nil || end {
			return err
		}
		if _, err := io.WriteString(out, kernelLine(string(b[:n]))); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// next reads a record of the kernel's log. end says that there is no more, if
// it is not to wait for one.
func next(raw interface {
	Read(func(fd uintptr) bool) error
}, b []byte, wait bool) (n int, end bool, err error) {
	var errno error
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, errno = unix.Read(int(fd), b)
			if errno != unix.EINTR && errno != unix.EPIPE { // some were overwritten: the next read goes on after them
				break
			}
		}
		return errno != unix.EAGAIN || !wait
	})
	switch {
	case err != nil:
		return 0, false, err
	case errno == unix.EAGAIN:
		return 0, true, nil
	case errno != nil:
		return 0, false, fmt.Errorf("read /dev/kmsg: %w", errno)
	}
	return n, n == 0, nil
}

// kernelLine makes of a record ("6,339,5140900,-;text\n KEY=value\n", see the
// kernel's Documentation/ABI/testing/dev-kmsg) the line that people know.
func kernelLine(record string) string {
	prefix, text, _ := strings.Cut(record, ";")
	text, _, _ = strings.Cut(text, "\n")
	fields := strings.Split(prefix, ",")
	if len(fields) < 3 {
		return text + "\n"
	}
	µs, _ := strconv.ParseInt(fields[2], 10, 64)
	return fmt.Sprintf("[%5d.%06d] %s\n", µs/1e6, µs%1e6, text)
}
