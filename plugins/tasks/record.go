package tasks

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
)

var fpRecorded = failpoint.New("tasks/record/written")

// phase says what a record's owner was about to do, so that the next daemon
// finishes or undoes it.
type phase string

const (
	creating phase = "creating"
	living   phase = "living"
	deleting phase = "deleting"
)

// saved is a task's record.
type saved struct {
	Sandbox string `json:"sandbox"`
	Bundle  string `json:"bundle,omitempty"`
	Phase   phase  `json:"phase"`
	Pid     uint32 `json:"pid,omitempty"`
	Exit    *exit  `json:"exit,omitempty"` // published
	Retain  bool   `json:"retain,omitempty"`

	Stdin, Stdout, Stderr string `json:",omitempty"`
	Terminal              bool   `json:",omitempty"`
}

// exit of a process.
type exit struct {
	Status uint32    `json:"status"`
	At     time.Time `json:"at"`
}

func (r *Runtime) recordPath(k key) string {
	return filepath.Join(r.cfg.Dir, k.namespace, k.id+".json")
}

// save writes a task's record.
func (t *Task) save(change func(*saved)) error {
	t.writing.Lock()
	defer t.writing.Unlock()
	if t.erased {
		return nil
	}
	t.mu.Lock()
	change(&t.saved)
	s := t.saved
	t.mu.Unlock()
	path := t.runtime.recordPath(t.key)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("record task %s: %w", t.key.id, err)
	}
	if err := record.Write(path, s); err != nil {
		return fmt.Errorf("record task %s: %w", t.key.id, err)
	}
	fpRecorded.Hit()
	return nil
}

// erase removes a task's record for good: what is learned of the task after
// that makes no new one.
func (t *Task) erase() error {
	t.writing.Lock()
	defer t.writing.Unlock()
	t.erased = true
	if err := os.Remove(t.runtime.recordPath(t.key)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("erase record of task %s: %w", t.key.id, err)
	}
	return nil
}
