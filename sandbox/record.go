package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
)

var (
	fpRemoving = failpoint.New("sandbox/delete/directory")
	fpRemoved  = failpoint.New("sandbox/delete/record")
)

// The records of a sandbox in its directory; see the package's comment.
const (
	planFile  = "sandbox.json"
	stateFile = "state.json"
)

// plan is what a sandbox was made of.
type plan struct {
	Spec    Spec              `json:"spec"`
	Runtime string            `json:"runtime,omitempty"` // type of the handler
	Labels  map[string]string `json:"labels,omitempty"`  // in containerd's store
	CRI     json.RawMessage   `json:"cri,omitempty"`     // the CRI plugin's own record
}

// progress is where a sandbox is on its way.
type progress struct {
	State     State           `json:"state"`
	Exit      *Exit           `json:"exit,omitempty"`
	Resources *Resources      `json:"resources,omitempty"`
	Backend   json.RawMessage `json:"backend,omitempty"` // what Save returned
}

var errNotMade = fmt.Errorf("there is nothing to save: %w", errdefs.ErrFailedPrecondition)

// record writes where the sandbox is on its way. Its caller holds writing.
func (b *box) record(ctx context.Context, state State) error {
	p := progress{State: state}
	b.mu.Lock()
	if b.exit != (Exit{}) {
		exit := b.exit
		p.Exit = &exit
	}
	p.Resources = b.resources
	sandbox := b.sandbox
	b.mu.Unlock()
	if sandbox != nil {
		var err error
		if p.Backend, err = attempt(ctx, b.id, "save", sandbox.Save); err != nil {
			return fmt.Errorf("save sandbox %s: %w", b.id, err)
		}
	}
	if err := record.Write(b.path(stateFile), p); err != nil {
		return fmt.Errorf("save sandbox %s: %w", b.id, err)
	}
	return nil
}

// recorded is what a sandbox's records say.
type recorded struct {
	plan
	progress
	dead bool // of another boot: none of it lives
}

// load reads the records of a sandbox. errdefs.ErrNotFound says that there are
// none.
func (b *box) load() (recorded, error) {
	var r recorded
	stateNow, stateErr := record.Read(b.path(stateFile), &r.progress)
	planNow, planErr := record.Read(b.path(planFile), &r.plan)
	noState, noPlan := errdefs.IsNotFound(stateErr), errdefs.IsNotFound(planErr)
	if noState && noPlan {
		return r, stateErr
	}
	// One that can be read is enough to know that the rest is history, too.
	r.dead = stateErr == nil && !stateNow || planErr == nil && !planNow
	switch {
	case r.dead:
		return r, nil
	case noState:
		return r, b.missing(stateFile)
	case stateErr != nil:
		return r, stateErr
	case !r.State.recorded():
		return r, fmt.Errorf("record %s has the state %q, which this release does not know: %w", b.path(stateFile), r.State, errdefs.ErrFailedPrecondition)
	case noPlan && (r.State == Created || r.State == Deleting):
		return r, nil // the daemon died before it was written, or after it was removed
	case noPlan:
		return r, b.missing(planFile)
	case planErr != nil:
		return r, planErr
	case r.Spec.ID != b.id:
		return r, fmt.Errorf("record %s is of sandbox %q: %w", b.path(planFile), r.Spec.ID, errdefs.ErrDataLoss)
	}
	return r, nil
}

func (b *box) missing(file string) error {
	return fmt.Errorf("record %s is missing: put it back: %w", b.path(file), errdefs.ErrDataLoss)
}

// blueprint is what the sandbox was made of, from memory or from its record.
func (b *box) blueprint() (plan, error) {
	b.mu.Lock()
	p := b.plan
	b.mu.Unlock()
	if p != nil {
		return *p, nil
	}
	var read plan
	if _, err := record.Read(b.path(planFile), &read); err != nil {
		return plan{}, err
	}
	return read, nil
}

// age is when the sandbox was made, as far as files tell.
func (b *box) age() time.Time {
	for _, path := range []string{b.path(planFile), b.dir} {
		if info, err := os.Stat(path); err == nil {
			return info.ModTime()
		}
	}
	return time.Unix(0, 0)
}

// remove deletes the sandbox's directory. What finds the rest after a crash
// goes last.
func (b *box) remove() error {
	fpRemoving.Hit()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(b.dir))
	if err != nil {
		return fmt.Errorf("remove sandbox %s: %w", b.id, err)
	}
	if len(mounts) > 0 {
		// Removing through a mount would remove what is mounted there.
		return fmt.Errorf("remove sandbox %s: %s is still mounted: %w", b.id, mounts[0].Mountpoint, errdefs.ErrFailedPrecondition)
	}
	entries, err := os.ReadDir(b.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove sandbox %s: %w", b.id, err)
	}
	for _, e := range entries {
		if e.Name() == stateFile {
			continue
		}
		if err := os.RemoveAll(b.path(e.Name())); err != nil {
			return fmt.Errorf("remove sandbox %s: %w", b.id, err)
		}
	}
	fpRemoved.Hit()
	if err := os.RemoveAll(b.dir); err != nil {
		return fmt.Errorf("remove sandbox %s: %w", b.id, err)
	}
	return nil
}

// sweep removes a directory without records, where there is nothing in it but
// what a crash leaves of writing the first.
func (b *box) sweep() error {
	for _, file := range []string{stateFile, planFile} {
		if err := os.Remove(record.Temporary(b.path(file))); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := os.Remove(b.dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("directory %s has files but no record: %w", filepath.Base(b.dir), err)
	}
	return nil
}
