package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/task/hold"
	"github.com/containerd-kuasar/containerd-kuasar/task/server"
)

var (
	fpGo     = failpoint.New("container/start/go")
	fpGone   = failpoint.New("container/start/gone")
	fpRemove = failpoint.New("container/start/remove")
)

// reader is the kind of the descriptor that is held while a process starts.
const reader = "start"

// lost is when Start looks whether a former worker has let the process go on.
const lost = 50 * time.Millisecond

// Start implements server.Runtime. The first process waits in an open of this
// FIFO for a reader, then writes a byte and becomes the program. libcontainer's
// own Exec looks every 100 ms whether the process lives, and leaves a thread in
// open(2) for ever if it does not; this waits for either event.
//
// The file's presence tells libcontainer that the container is not started, and
// the next worker that this one died in here: so it goes last. The reader is
// held elsewhere, too: without any, the process would fail to write. And the
// byte stays in the FIFO, for that next worker to see.
func (r *Runtime) Start(ctx context.Context, ref server.Ref, process *os.File) error {
	path := filepath.Join(state(ref), "exec.fifo")
	fpGo.Hit()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return fmt.Errorf("start container %s: %w", ref.ID, err)
	}
	fifo := os.NewFile(uintptr(fd), path)
	defer fifo.Close()
	key := hold.Key(ref.Namespace, ref.ID, "", reader)
	if err := r.holder.Hold(key, fifo); err == nil {
		defer r.holder.Drop(key)
	}
	fpGone.Hit()
	if err := await(ctx, fd, int(process.Fd())); err != nil {
		return fmt.Errorf("start container %s: %w", ref.ID, err)
	}
	fpRemove.Hit()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("start container %s: %w", ref.ID, err)
	}
	return nil
}

// await blocks until the process wrote its byte, or had gone on before, or is
// dead.
func await(ctx context.Context, fifo, process int) error {
	fds := []unix.PollFd{{Fd: int32(fifo), Events: unix.POLLIN}, {Fd: int32(process), Events: unix.POLLIN}}
	looked := false
	for {
		timeout := left(ctx)
		if !looked && (timeout < 0 || timeout > int(lost/time.Millisecond)) {
			timeout = int(lost / time.Millisecond)
		}
		n, err := unix.Poll(fds, timeout)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 && looked {
			return fmt.Errorf("first process does not go on: %w", context.DeadlineExceeded)
		}
		// A process that is dead now may have written before.
		if fds[0].Revents&unix.POLLIN != 0 {
			return nil
		}
		if fds[1].Revents != 0 {
			return fmt.Errorf("first process died before its program ran: %w", errdefs.ErrFailedPrecondition)
		}
		if n == 0 {
			waits, err := has(process, fifo)
			if err != nil || !waits {
				return err
			}
			looked = true
			continue
		}
		fds[0].Fd = -1 // its writer died, and the process is about to
	}
}

// has says whether the process has the file open that our descriptor is of: a
// first process has the FIFO until it becomes the program.
func has(process, fd int) (bool, error) {
	pid, err := pidfd.Pid(process)
	if err != nil {
		return false, err
	}
	var want, got unix.Stat_t
	if err := unix.Fstat(fd, &want); err != nil {
		return false, err
	}
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return false, err
	}
	for _, link := range links {
		if unix.Stat(link, &got) == nil && got.Dev == want.Dev && got.Ino == want.Ino {
			return true, nil
		}
	}
	return false, nil
}

// left is the time until ctx's deadline in milliseconds, for poll(2).
func left(ctx context.Context) int {
	t, ok := ctx.Deadline()
	if !ok {
		return -1
	}
	return int(max(time.Until(t), 0)/time.Millisecond) + 1
}
