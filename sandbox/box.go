package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/moby/sys/mountinfo"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
)

var (
	fpRecord = failpoint.New("sandbox/record/written")
	fpRemove = failpoint.New("sandbox/delete/directory")
)

// recordFile is the name of a sandbox's record in its directory.
const recordFile = "sandbox.json"

// saved is a sandbox's record.
type saved struct {
	Spec    Spec            `json:"spec"`
	Meta    meta            `json:"meta"`
	State   State           `json:"state"`
	Exit    *Exit           `json:"exit,omitempty"`
	Backend json.RawMessage `json:"backend,omitempty"`
}

// box is one sandbox of a Controller.
type box struct {
	spec Spec
	meta meta
	ops  chan struct{} // holds a token while Start, Stop, Update or Delete run
	done chan struct{} // closed when the sandbox has ended

	mu      sync.Mutex // guards what follows, never held over I/O
	sandbox Sandbox    // nil when quarantined
	state   State
	reason  string             // why it is quarantined
	exit    Exit               // once done is closed
	cancel  context.CancelFunc // of a running Start

	writing sync.Mutex // serializes the record's writers
	removed bool       // guarded by writing: there is no record to write
}

func newBox(spec Spec, m meta) *box {
	b := &box{spec: spec, meta: m, state: Created, ops: make(chan struct{}, 1), done: make(chan struct{})}
	b.spec.Saved = b.save
	return b
}

// begin waits for its turn to change the sandbox.
func (b *box) begin(ctx context.Context) (end func(), err error) {
	select {
	case b.ops <- struct{}{}:
		return func() { <-b.ops }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for another call on sandbox %s: %w", b.spec.ID, ctx.Err())
	}
}

func (b *box) current() (State, Sandbox) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state, b.sandbox
}

// enter changes the state and records it.
func (b *box) enter(ctx context.Context, next State) error {
	b.mu.Lock()
	err := b.state.to(next)
	if err == nil {
		b.state = next
	}
	b.mu.Unlock()
	if err != nil {
		return fmt.Errorf("sandbox %s: %w", b.spec.ID, err)
	}
	return b.save(ctx)
}

// save writes the record.
func (b *box) save(context.Context) error {
	b.writing.Lock()
	defer b.writing.Unlock()
	if b.removed {
		return nil
	}
	b.mu.Lock()
	s := saved{Spec: b.spec, Meta: b.meta, State: b.state}
	if b.exit != (Exit{}) {
		exit := b.exit
		s.Exit = &exit
	}
	sandbox := b.sandbox
	b.mu.Unlock()
	if sandbox != nil {
		var err error
		if err = guard("save", b.spec.ID, func() error { s.Backend, err = sandbox.Save(); return err }); err != nil {
			return fmt.Errorf("save sandbox %s: %w", b.spec.ID, err)
		}
	}
	if err := record.Write(filepath.Join(b.spec.Dir, recordFile), s); err != nil {
		return fmt.Errorf("save sandbox %s: %w", b.spec.ID, err)
	}
	fpRecord.Hit()
	return nil
}

// end notes how the sandbox ended; the first to say so is right.
func (b *box) end(e Exit) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-b.done:
	default:
		b.exit = e
		close(b.done)
	}
}

// watch follows a running sandbox to its end.
func (b *box) watch(ctx context.Context, sandbox Sandbox) {
	var exit Exit
	err := guard("wait for", b.spec.ID, func() (err error) { exit, err = sandbox.Wait(ctx); return err })
	if err != nil {
		if ctx.Err() != nil {
			return // the daemon ends, not the sandbox
		}
		log.G(ctx).WithError(err).WithField(keySandbox, b.spec.ID).Error("sandbox cannot be followed")
		exit = Exit{Status: unknownStatus, At: time.Now()}
	}
	b.end(exit)
	if err := b.enter(ctx, Stopped); err != nil && !errdefs.IsFailedPrecondition(err) && !errors.Is(err, os.ErrNotExist) {
		log.G(ctx).WithError(err).WithField(keySandbox, b.spec.ID).Warn("end of sandbox is not recorded")
	}
}

// unknownStatus is the exit status of what nobody saw exit (containerd's
// client.UnknownExitStatus).
const unknownStatus = 255

// remove deletes the sandbox's directory.
func (b *box) remove() error {
	fpRemove.Hit()
	b.writing.Lock()
	defer b.writing.Unlock()
	b.removed = true
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(b.spec.Dir))
	if err != nil {
		return fmt.Errorf("remove sandbox %s: %w", b.spec.ID, err)
	}
	if len(mounts) > 0 {
		// Removing through a mount would remove what is mounted there.
		return fmt.Errorf("remove sandbox %s: %s is still mounted: %w", b.spec.ID, mounts[0].Mountpoint, errdefs.ErrFailedPrecondition)
	}
	// The record goes last: it is what finds the rest after a crash.
	entries, err := os.ReadDir(b.spec.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove sandbox %s: %w", b.spec.ID, err)
	}
	for _, e := range entries {
		if e.Name() == recordFile {
			continue
		}
		if err := os.RemoveAll(filepath.Join(b.spec.Dir, e.Name())); err != nil {
			return fmt.Errorf("remove sandbox %s: %w", b.spec.ID, err)
		}
	}
	if err := os.RemoveAll(b.spec.Dir); err != nil {
		return fmt.Errorf("remove sandbox %s: %w", b.spec.ID, err)
	}
	return nil
}

// guard turns a backend's panic into an error: the daemon must not die of it.
func guard(operation, id string, f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%s sandbox %s: the backend panicked: %v: %w", operation, id, r, errdefs.ErrInternal)
		}
	}()
	return f()
}
