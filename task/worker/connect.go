package worker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
	"github.com/containerd-kuasar/containerd-kuasar/task"
	"github.com/containerd-kuasar/containerd-kuasar/task/hold"
)

// Names in Config.Dir.
const (
	agentSocket = "agent.sock"
	holdSocket  = "hold.sock"
	logFile     = "log"
	lockFile    = "worker.lock"
	recordFile  = "worker.json"
)

var (
	fpHold   = failpoint.New("worker/connect/hold")
	fpRecord = failpoint.New("worker/connect/record")
)

var (
	// errBusy means that a worker lives, or is being started.
	errBusy = errors.New("a worker has the lock")

	// errDied means that a worker died before it answered, though it listened
	// or had been started by another daemon.
	errDied = errors.New("it died")
)

// saved is the record of the last worker, for the next daemon and for people.
type saved struct {
	Pid   int    `json:"pid"`
	Start uint64 `json:"start"` // pidfd.StartTime
	// Former are the pids of workers before it, the newest first.
	Former []uint32 `json:"former,omitempty"`
}

// maxFormer bounds the pids that are remembered. They only serve containers
// that were made, but not started, under a worker that died since.
const maxFormer = 16

// process is a worker's, child of this daemon or of another.
type process struct {
	pid  int
	file *os.File // pidfd
	exit chan pidfd.Exit
}

// conn is everything that is open to a live worker.
type conn struct {
	worker *Worker
	proc   *process
	link   *hold.Link
	client *task.Client
}

// lock takes the node's right to start a worker. The worker inherits it and
// has it for as long as it lives, so there are never two, and one that was
// forked by a daemon which died at once is found by the next.
func (w *Worker) lock() (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(w.cfg.Dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock worker: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errBusy
	}
	return nil, fmt.Errorf("lock worker: %w", err)
}

// connect adopts the worker or starts one. One that dies while it takes up the
// containers of its predecessor is not the callers' concern: there is another.
func (w *Worker) connect(ctx context.Context) (c *conn, err error) {
	if err := w.fits(); err != nil {
		return nil, err
	}
	for range connectTries {
		if c, err = w.try(ctx); !errors.Is(err, errDied) {
			return c, err
		}
		log.G(ctx).WithError(err).Warn("worker died")
	}
	return nil, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
}

func (w *Worker) try(ctx context.Context) (*conn, error) {
	lock, err := w.lock()
	if errors.Is(err, errBusy) {
		c, err := w.adopt(ctx)
		if err != nil {
			return nil, fmt.Errorf("adopt worker: %w", err)
		}
		return c, nil
	}
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	proc, err := w.start(ctx, lock)
	if err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	c, err := w.dial(ctx, proc)
	if err != nil {
		return nil, fmt.Errorf("connect worker %d: %w", proc.pid, err)
	}
	return c, nil
}

// adopt connects to a worker that this daemon did not start, or lost the
// connection to. One may be about to listen.
func (w *Worker) adopt(ctx context.Context) (*conn, error) {
	pid, err := w.listening(ctx)
	if err != nil {
		return nil, err
	}
	proc, err := w.follow(pid)
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("%w: %w", err, errDied)
	}
	if err != nil {
		return nil, err
	}
	// Its daemon may have died before it did this.
	if err := w.settle(pid); err != nil {
		err = proc.autopsy(ctx, err)
		proc.close(w.reaper)
		return nil, err
	}
	return w.dial(ctx, proc)
}

// listening waits until the worker listens, and returns its pid. It looks again
// and again: neither listen(2) nor the release of a lock is an event that one
// could wait for, and this takes only the few milliseconds in which a worker
// begins or ends whose daemon died then.
func (w *Worker) listening(ctx context.Context) (int, error) {
	path := filepath.Join(w.cfg.Dir, agentSocket)
	again := time.NewTicker(listenTime)
	defer again.Stop()
	for {
		pid, err := listener(ctx, path)
		if err == nil {
			return pid, nil
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) {
			return 0, err
		}
		if lock, lerr := w.lock(); lerr == nil {
			lock.Close()
			return 0, fmt.Errorf("%w: %w", err, errDied)
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return 0, fmt.Errorf("it lives and does not listen at %s: %w", path, ctx.Err())
		}
	}
}

// listener returns the process that made the socket at path.
func listener(ctx context.Context, path string) (int, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(cerr, err); err != nil {
		return 0, fmt.Errorf("ask %s for its process: %w", path, err)
	}
	return int(cred.Pid), nil
}

// dial connects to a worker that listens. It takes over proc, also on error.
func (w *Worker) dial(ctx context.Context, proc *process) (_ *conn, err error) {
	c := &conn{worker: w, proc: proc}
	defer func() {
		if err != nil {
			err = proc.autopsy(ctx, err)
			c.close()
		}
	}()
	// A new worker serves no call before it got what is held for it.
	if c.link, err = w.keeper.Connect(ctx, filepath.Join(w.cfg.Dir, holdSocket)); err != nil {
		return nil, err
	}
	fpHold.Hit()
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", filepath.Join(w.cfg.Dir, agentSocket))
	if err != nil {
		return nil, err
	}
	if c.client, err = task.NewClient(ctx, nc); err != nil {
		return nil, w.refuse(ctx, proc, err)
	}
	if err := w.note(proc.pid); err != nil {
		return nil, err
	}
	return c, nil
}

// autopsy adds to an error whether the worker is dead, which was its cause or
// its effect.
func (p *process) autopsy(ctx context.Context, err error) error {
	t := time.NewTimer(deathTime)
	defer t.Stop()
	if errdefs.IsFailedPrecondition(err) {
		return err // its answer
	}
	select {
	case e := <-p.exit:
		_, cause := died(e)
		return fmt.Errorf("%w: %w (%s)", err, errDied, cause)
	case <-t.C:
	case <-ctx.Done():
	}
	return err
}

// refuse explains why a worker is of no use. If it holds nothing it makes way
// for the one that is installed now.
func (w *Worker) refuse(ctx context.Context, proc *process, err error) error {
	if !errdefs.IsFailedPrecondition(err) {
		return err
	}
	// It runs from a copy in memory, but was started by this name.
	exe := "kuasar-task"
	if args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", proc.pid)); err == nil {
		exe, _, _ = strings.Cut(string(args), "\x00")
	}
	if w.holds() || len(w.keeper.Keys()) > 0 {
		return fmt.Errorf("%s holds containers and is of another release; it goes on holding them: %w", exe, err)
	}
	err = errors.Join(fmt.Errorf("%s: %w", exe, err), pidfd.Signal(proc.file, unix.SIGKILL))
	select {
	case <-proc.exit:
	case <-ctx.Done():
	}
	return err
}

// last reads the record of the last worker; it is empty if there was none in
// this boot, or none that can be read: it only helps.
func (w *Worker) last() saved {
	var s saved
	if same, err := record.Read(filepath.Join(w.cfg.Dir, recordFile), &s); err != nil || !same {
		return saved{}
	}
	return s
}

// recall takes the pids from the record, for those who ask before the worker
// is adopted.
func (w *Worker) recall() {
	if s := w.last(); s.Pid != 0 {
		w.pids = append([]uint32{uint32(s.Pid)}, s.Former...)
	}
}

// note records the worker.
func (w *Worker) note(pid int) error {
	last := w.last()
	start, err := pidfd.StartTime(pid)
	if err != nil {
		return err
	}
	next := saved{Pid: pid, Start: start, Former: last.Former}
	if last.Pid != 0 && last.Pid != pid {
		next.Former = slices.Insert(next.Former, 0, uint32(last.Pid))
	}
	next.Former = next.Former[:min(len(next.Former), maxFormer)]
	if err := record.Write(filepath.Join(w.cfg.Dir, recordFile), next); err != nil {
		return err
	}
	fpRecord.Hit()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pids = append([]uint32{uint32(pid)}, next.Former...)
	return nil
}

// follow opens the process and learns of its end.
func (w *Worker) follow(pid int) (*process, error) {
	f, err := pidfd.Open(pid, 0)
	if err != nil {
		return nil, err
	}
	p := &process{pid: pid, file: f, exit: make(chan pidfd.Exit, 1)}
	if err := w.reaper.Follow(f, func(e pidfd.Exit) { p.exit <- e }); err != nil {
		f.Close()
		return nil, err
	}
	return p, nil
}

func (p *process) close(r *pidfd.Reaper) {
	r.Unfollow(p.file)
	p.file.Close()
}

// wait returns when the connection is of no use any more, with a message and
// a cause for the log.
func (c *conn) wait(life context.Context) (message, cause string) {
	var why string
	select {
	case e := <-c.proc.exit:
		return died(e)
	case <-c.client.Done():
		why = "its agent connection broke"
	case <-c.link.Done():
		why = "its hold connection broke"
	case <-life.Done():
		return "worker is left", "the daemon stops"
	}
	// As a rule it is about to end: its sockets went first.
	t := time.NewTimer(deathTime)
	defer t.Stop()
	select {
	case e := <-c.proc.exit:
		return died(e)
	case <-t.C:
	case <-life.Done():
	}
	return "worker lost", why
}

func died(e pidfd.Exit) (message, cause string) {
	if e.Unknown != "" {
		return "worker died", e.Unknown
	}
	return "worker died", fmt.Sprintf("status %d", e.Status)
}

func (c *conn) close() {
	if c.client != nil {
		c.client.Close()
	}
	if c.link != nil {
		c.link.Close()
	}
	c.proc.close(c.worker.reaper)
}
