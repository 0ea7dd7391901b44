package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/cgroup"
	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
)

var (
	fpFork   = failpoint.New("worker/start/fork")
	fpSettle = failpoint.New("worker/start/settle")
	fpReady  = failpoint.New("worker/start/ready")
)

// start runs kuasar-task and returns once it listens. It inherits lock.
func (w *Worker) start(ctx context.Context, lock *os.File) (_ *process, err error) {
	exe, err := w.cfg.Find()
	if err != nil {
		return nil, err
	}
	out, offset, err := w.openLog()
	if err != nil {
		return nil, err
	}
	defer out.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	ready, child, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	pid, err := w.fork(exe, []*os.File{null, out, out, child, lock})
	child.Close()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", exe, err)
	}
	fpFork.Hit()
	// Nobody else waits for this child, so its pid is still its own.
	proc, err := w.follow(pid)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			// It has not answered anyone yet, and so holds nothing.
			_ = pidfd.Signal(proc.file, unix.SIGKILL)
			<-proc.exit
			proc.close(w.reaper)
		}
	}()
	// That it has ended already says await, which knows more about it.
	if err := w.settle(pid); err != nil && !errors.Is(err, unix.ESRCH) {
		return nil, err
	}
	fpSettle.Hit()
	if err := await(ctx, ready); err != nil {
		return nil, fmt.Errorf("%s: %w%s", exe, err, tail(out, offset))
	}
	fpReady.Hit()
	return proc, nil
}

// fork starts the program in a session of its own: signals to the daemon's
// terminal or process group are not for it.
func (w *Worker) fork(exe string, files []*os.File) (int, error) {
	w.mu.Lock()
	first := w.starts == 0
	w.starts++
	w.mu.Unlock()
	p, err := os.StartProcess(exe, []string{exe, "serve", "--dir", w.cfg.Dir}, &os.ProcAttr{
		Dir:   "/",
		Env:   environ(os.Environ(), first),
		Files: files,
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, fmt.Errorf("%w: install it there, or set its path in containerd's configuration: %w", err, errdefs.ErrNotFound)
	case errors.Is(err, fs.ErrPermission):
		return 0, fmt.Errorf("%w: make it executable: %w", err, errdefs.ErrFailedPrecondition)
	case err != nil:
		return 0, err
	}
	pid := p.Pid // Release forgets it
	return pid, p.Release()
}

// environ leaves out what is addressed to this daemon alone. A failpoint is
// for the first worker, or the next would die of it too.
func environ(all []string, first bool) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool {
		name, _, _ := strings.Cut(s, "=")
		switch name {
		case "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "INVOCATION_ID", "JOURNAL_STREAM",
			"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES":
			return true
		case failpoint.Env:
			return !first
		}
		return false
	})
}

// settle does to a new worker what makes it survive its daemon: it moves it
// out of the daemon's cgroup, and has the kernel kill it only after the
// daemon when memory runs out. Idempotent.
func (w *Worker) settle(pid int) error {
	if err := cgroup.Place(pid, w.cfg.Cgroup); err != nil {
		return fmt.Errorf("move worker %d to cgroup %s: %w", pid, w.cfg.Cgroup, err)
	}
	if err := yield(pid); err != nil {
		return fmt.Errorf("set oom_score_adj of worker %d: %w", pid, err)
	}
	return nil
}

// yield makes the worker a little more likely to be killed than the daemon,
// as containerd does with its shims.
func yield(pid int) error {
	b, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return err
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return err
	}
	const most = 1000 // OOM_SCORE_ADJ_MAX of the kernel
	path := fmt.Sprintf("/proc/%d/oom_score_adj", pid)
	return os.WriteFile(path, strconv.AppendInt(nil, int64(min(score+1, most)), 10), 0)
}

// await reads the worker's word that it listens.
func await(ctx context.Context, ready *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	b := make([]byte, 3)
	_, err := io.ReadFull(ready, b)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("it does not listen: %w", ctx.Err())
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("it ended before it listened: %w", errdefs.ErrFailedPrecondition)
	case err != nil:
		return err
	case string(b) != "ok\n":
		return fmt.Errorf("it says %q and not that it listens: is it kuasar-task? %w", b, errdefs.ErrFailedPrecondition)
	}
	return nil
}
