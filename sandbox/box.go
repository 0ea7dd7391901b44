package sandbox

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/log"
)

// box is one sandbox of a Controller. There are many and most are idle, so it
// keeps little: what the sandbox was made of is in its record.
type box struct {
	id  string
	dir string

	turn    chan struct{} // holds a token while Create, Start, Stop, Update, Shutdown or recovery run
	writing chan struct{} // holds a token while a record is written
	done    chan struct{} // closed when the sandbox has ended

	recovered chan struct{} // closed when a sandbox of a former daemon is recovered; nil for others

	mu        sync.Mutex // guards what follows, never held over I/O
	name      string     // CRI's, unique within namespace while it is known
	namespace string
	createdAt time.Time
	state     State
	sandbox   Sandbox // nil before Create is done and when quarantined
	reason    string  // why it is quarantined
	attempts  int     // to recover it, that have ended
	plan      *plan   // until Start returns; later it is on disk
	resources *Resources
	ended     bool // and exit is known; done is closed soon
	exit      Exit
	cancel    context.CancelCauseFunc // of a running Start
	stops     int                     // calls of Stop and Shutdown that wait or run
	watched   bool                    // there is a goroutine in Sandbox.Wait

	meter meter
}

func newBox(id, dir string, state State) *box {
	return &box{
		id: id, dir: dir, state: state,
		turn: make(chan struct{}, 1), writing: make(chan struct{}, 1), done: make(chan struct{}),
	}
}

// identify takes over what calls ask for most.
func (b *box) identify(s Spec) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.name, b.namespace, b.createdAt = s.Name, s.Namespace, s.CreatedAt
}

// begin waits for its turn to change the sandbox.
func (b *box) begin(ctx context.Context) (end func(), err error) {
	select {
	case b.turn <- struct{}{}:
		return func() { <-b.turn }, nil
	case <-ctx.Done():
		state, _ := b.current()
		return nil, fmt.Errorf("sandbox %s is %s, and another call on it did not end: %w", b.id, state, ctx.Err())
	}
}

func (b *box) current() (State, Sandbox) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state, b.sandbox
}

func (b *box) tries() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.attempts
}

func (b *box) become(sandbox Sandbox) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sandbox = sandbox
}

// enter records the next state and then is in it. What cannot be recorded is
// not entered.
func (b *box) enter(ctx context.Context, next State) error {
	defer b.write()()
	return b.change(ctx, next, func() error { return b.record(ctx, next) })
}

// fall is enter on the way down: it does not depend on a disk with room. A
// recovery finds out what was not recorded.
func (b *box) fall(ctx context.Context, next State) error {
	defer b.write()()
	return b.change(ctx, next, func() error {
		if now, _ := b.current(); now == next {
			return nil
		}
		if err := b.record(ctx, next); err != nil {
			log.G(ctx).WithError(err).WithFields(b.fields(next)).Warn("state of sandbox is not recorded")
		}
		return nil
	})
}

// resume is enter for a state that is recorded already, or never is.
func (b *box) resume(ctx context.Context, next State) error {
	defer b.write()()
	return b.change(ctx, next, func() error { return nil })
}

// write waits until nobody writes a record. Records are small and on the state
// file system, and a writer calls nobody: this does not take long.
func (b *box) write() (end func()) {
	b.writing <- struct{}{}
	return func() { <-b.writing }
}

// change is for the one that writes: nobody else changes the state meanwhile.
func (b *box) change(ctx context.Context, next State, record func() error) error {
	now, _ := b.current()
	if err := now.to(next); err != nil {
		return fmt.Errorf("sandbox %s: %w", b.id, err)
	}
	if err := record(); err != nil {
		return err
	}
	b.mu.Lock()
	b.state = next
	b.mu.Unlock()
	log.G(ctx).WithFields(b.fields(next)).Debug("sandbox changed its state")
	return nil
}

func (b *box) fields(state State) log.Fields {
	return log.Fields{keySandbox: b.id, keyState: string(state)}
}

// save records the sandbox as it is.
func (b *box) save(ctx context.Context) error {
	defer b.write()()
	state, _ := b.current()
	if !state.recorded() {
		return fmt.Errorf("save sandbox %s: it is %s: %w", b.id, state, errNotMade)
	}
	return b.record(ctx, state)
}

// finish notes how the sandbox ended. The first to say so is right. It is
// recorded before it is told, unless it was stopped: then Stop is about to do
// so.
func (b *box) finish(ctx context.Context, e Exit) (first bool) {
	if !b.note(e) {
		return false
	}
	if state, _ := b.current(); state == Running {
		if err := b.fall(ctx, Stopped); err != nil {
			log.G(ctx).WithError(err).WithFields(b.fields(state)).Debug("sandbox ended while it was stopped")
		}
	}
	close(b.done)
	log.G(ctx).WithFields(b.fields(Stopped)).WithField(keyStatus, e.Status).Debug("sandbox ended")
	return true
}

func (b *box) note(e Exit) (first bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return false
	}
	b.ended, b.exit = true, e
	return true
}

// over says whether finish was called.
func (b *box) over() bool {
	select {
	case <-b.done:
		return true
	default:
		return false
	}
}

// interrupt has a Start give up, one that runs or that waits for its turn,
// until the call that wants this has ended.
func (b *box) interrupt() (end func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stops++
	if b.cancel != nil {
		b.cancel(errStopped)
	}
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.stops--
	}
}

// arm lets Stop and Shutdown cancel what begins now.
func (b *box) arm(cancel context.CancelCauseFunc) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cancel = cancel
	if cancel != nil && b.stops > 0 {
		cancel(errStopped)
	}
}

// errStopped is why a Start was canceled.
var errStopped = fmt.Errorf("it was stopped while it started: %w", context.Canceled)

func (b *box) path(file string) string { return filepath.Join(b.dir, file) }
