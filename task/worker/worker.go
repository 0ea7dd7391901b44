// Package worker is the daemon's side of the node's one worker: kuasar-task,
// which holds the processes of all pods that run on the host. It starts the
// worker when it is first needed, adopts one that runs since before this
// daemon, and starts another when it dies while there are containers to hold;
// their descriptors are kept for it (package hold).
//
//	idle ──Agent──▶ connecting ──▶ live ──worker or connection lost──┐
//	  ▲                 │ failed                                     │
//	  ├─────────────────┘ (Agent has the error)                      │
//	  ├──────────────────────── nothing to hold ─────────────────────┤
//	  └────── delay ◀──── something to hold, or the process lives ───┘
//
// A worker outlives the daemon, and is left running when the node's last
// container is gone: the next pod then starts at once. Nothing here ever kills
// one that answered.
package worker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/task"
	"github.com/containerd-kuasar/containerd-kuasar/task/hold"
)

// Config of the worker.
type Config struct {
	// Find returns the path of kuasar-task. It is called at each start, so
	// that one that is installed later is found.
	Find func() (string, error)

	// Dir holds the worker's sockets, log and records. It must be short: see
	// maxPath.
	Dir string

	// Cgroup that the worker is put into, from the root of each hierarchy. It
	// must not be the daemon's own, or a restart of its service takes the
	// containers along.
	Cgroup string
}

const (
	// maxPath is the longest path of a unix socket: sun_path of unix(7) less
	// the zero at its end.
	maxPath = 107

	// connectTime bounds a start, which takes some 20 ms on an idle machine.
	connectTime = 30 * time.Second

	// connectTries is how many workers may die in one connectTime.
	connectTries = 3

	// deathTime is how long a process that closed its sockets may take to end
	// before it is connected to again.
	deathTime = time.Second

	// failTime is how long the error of a start is repeated before another
	// start is tried.
	failTime = 100 * time.Millisecond

	// listenTime is between two looks at whether a worker listens that was
	// started by a daemon that died.
	listenTime = 10 * time.Millisecond

	// A worker that lives less than steady gets its next start delayed: twice
	// the last delay, within these bounds.
	steady   = 10 * time.Second
	minDelay = 100 * time.Millisecond
	maxDelay = 10 * time.Second
)

// Worker is safe for concurrent use. Make one per node.
type Worker struct {
	cfg    Config
	reaper *pidfd.Reaper
	keeper *hold.Keeper

	// life ends with Close.
	life  context.Context
	close context.CancelFunc
	runs  sync.WaitGroup

	calls atomic.Uint32 // of Agent

	mu      sync.Mutex
	session *session // nil when idle
	delay   time.Duration
	failure error     // of the last start, until
	until   time.Time // another may be tried
	starts  int       // of this daemon
	pids    []uint32  // of all workers known, newest first
}

// session is one connection, from the wish for it to its loss.
type session struct {
	ready chan struct{} // closed when client or err is set
	over  chan struct{} // closed when it is no longer Worker.session

	client *task.Client
	err    error
}

// New returns at once. A worker that runs already is adopted in the
// background, so that its descriptors are held here as soon as possible.
func New(cfg Config) (*Worker, error) {
	// Containers of other users pass beside it, to their root file systems.
	if err := os.MkdirAll(filepath.Dir(cfg.Dir), 0o711); err != nil {
		return nil, fmt.Errorf("make directory of worker: %w", err)
	}
	if err := os.Mkdir(cfg.Dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make directory of worker: %w", err)
	}
	reaper, err := pidfd.NewReaper()
	if err != nil {
		return nil, fmt.Errorf("follow worker: %w", err)
	}
	w := &Worker{cfg: cfg, reaper: reaper, keeper: hold.NewKeeper()}
	w.life, w.close = context.WithCancel(context.Background())
	w.recall()
	if w.needed() {
		w.mu.Lock()
		w.begin(0)
		w.mu.Unlock()
	}
	return w, nil
}

// fits checks the paths of the sockets.
func (w *Worker) fits() error {
	for _, name := range []string{agentSocket, holdSocket} {
		if p := filepath.Join(w.cfg.Dir, name); len(p) > maxPath {
			return fmt.Errorf("socket path %s is too long: it has %d bytes and the kernel takes %d: set a shorter `state` in containerd's configuration: %w",
				p, len(p), maxPath, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// Close drops the connection. The worker and its containers run on.
func (w *Worker) Close() error {
	w.close()
	w.runs.Wait()
	return errors.Join(w.keeper.Close(), w.reaper.Close())
}

// Reaper follows processes of the node with one goroutine; it ends with Close.
func (w *Worker) Reaper() *pidfd.Reaper { return w.reaper }

// Agent returns a live connection to the worker, which it starts if there is
// none; all callers of the time share one start. It blocks until the worker
// answers. A client that died is replaced by the next call.
func (w *Worker) Agent(ctx context.Context) (*task.Client, error) {
	for {
		w.mu.Lock()
		if w.life.Err() != nil {
			w.mu.Unlock()
			return nil, fmt.Errorf("connect worker: the daemon stops: %w", errdefs.ErrUnavailable)
		}
		s := w.session
		if s == nil && time.Now().Before(w.until) {
			err := w.failure
			w.mu.Unlock()
			return nil, err
		}
		if s == nil {
			s = w.begin(0)
		}
		w.mu.Unlock()
		select {
		case <-s.ready:
		case <-ctx.Done():
			return nil, fmt.Errorf("connect worker: %w", ctx.Err())
		}
		if s.err != nil {
			return nil, s.err
		}
		select {
		case <-s.client.Done():
		default:
			w.tend()
			return s.client, nil
		}
		select {
		case <-s.over:
		case <-ctx.Done():
			return nil, fmt.Errorf("connect worker: %w", ctx.Err())
		}
	}
}

// Pids are the processes that were the worker, the newest first; empty before
// the first.
func (w *Worker) Pids() []uint32 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.pids)
}

// begin makes the next session. w.mu is held.
func (w *Worker) begin(delay time.Duration) *session {
	s := &session{ready: make(chan struct{}), over: make(chan struct{})}
	w.session = s
	w.runs.Add(1)
	go func() {
		defer w.runs.Done()
		w.run(s, delay)
	}()
	return s
}

// run is the life of a session.
func (w *Worker) run(s *session, delay time.Duration) {
	if !w.pause(delay) {
		s.err = fmt.Errorf("connect worker: the daemon stops: %w", errdefs.ErrUnavailable)
		close(s.ready)
		return
	}
	ctx, cancel := context.WithTimeout(w.life, connectTime)
	c, err := w.connect(ctx)
	cancel()
	if err != nil {
		s.err = err
		w.failed(s)
		return
	}
	began := time.Now()
	s.client = c.client
	close(s.ready)
	message, cause := c.wait(w.life)
	c.close()
	if w.life.Err() != nil {
		close(s.over)
		return
	}
	log.G(w.life).WithFields(log.Fields{"pid": c.proc.pid, "cause": cause}).Warn(message)
	w.lost(s, time.Since(began) >= steady)
}

// failed ends a session that could not connect. Its waiters get the error; if
// there are containers to hold, it is tried again without being asked.
func (w *Worker) failed(s *session) {
	retry := w.life.Err() == nil && w.needed()
	w.mu.Lock()
	defer w.mu.Unlock()
	close(s.ready)
	w.session = nil
	close(s.over)
	// Many may ask, and each attempt is a process.
	w.failure, w.until = s.err, time.Now().Add(failTime)
	if !retry {
		return
	}
	log.G(w.life).WithError(s.err).Error("worker does not start and there are containers to hold")
	w.delay = min(max(2*w.delay, minDelay), maxDelay)
	w.runs.Add(1)
	go func(delay time.Duration) {
		defer w.runs.Done()
		if !w.pause(delay) {
			return
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.session == nil {
			w.begin(0)
		}
	}(w.delay)
}

// lost ends a session that was live.
func (w *Worker) lost(s *session, wasSteady bool) {
	needed := w.needed()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.session = nil
	if wasSteady {
		w.delay = 0
	}
	if needed {
		w.begin(w.delay)
	}
	w.delay = min(max(2*w.delay, minDelay), maxDelay)
	close(s.over)
}

// needed says whether a worker has to run: one runs already, or there are
// containers that one held.
func (w *Worker) needed() bool {
	if len(w.keeper.Keys()) > 0 || w.holds() {
		return true
	}
	lock, err := w.lock()
	if err == nil {
		lock.Close()
	}
	return errors.Is(err, errBusy)
}

// holds says whether the worker has, or had, containers: it keeps a directory
// for each, below one for its namespace.
func (w *Worker) holds() bool {
	found, err := filepath.Glob(filepath.Join(w.cfg.Dir, "containers", "*", "*"))
	return err == nil && len(found) > 0
}

// pause is false if the daemon stops meanwhile.
func (w *Worker) pause(d time.Duration) bool {
	if d == 0 {
		return w.life.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-w.life.Done():
		return false
	}
}

// Program is the path of kuasar-task, as the next start would use it.
func (w *Worker) Program() (string, error) { return w.cfg.Find() }
