package tasks

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"

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
	erased   phase = "erased" // has no record
)

// saved is a task's record.
type saved struct {
	Sandbox   string   `json:"sandbox"`
	Sandboxer string   `json:"sandboxer"` // alone knows whether the sandbox is gone; empty in older records
	Phase     phase    `json:"phase"`
	Pid       uint32   `json:"pid,omitempty"`
	Exit      *exit    `json:"exit,omitempty"` // it was told
	Told      []string `json:"told,omitempty"` // execs whose exit was told
	Retain    bool     `json:"retain,omitempty"`

	Stdin, Stdout, Stderr string `json:",omitempty"`
	StdinClosed           bool   `json:",omitempty"`
	Terminal              bool   `json:",omitempty"`

	Execs map[string]runtime.IO `json:",omitempty"` // see execIO
}

// exit of a process.
type exit struct {
	Status uint32    `json:"status"`
	At     time.Time `json:"at"`
}

func (r *Runtime) recordPath(k key) string {
	return filepath.Join(r.cfg.Dir, k.namespace, k.id+".json")
}

// save writes a task's record, until it is erased. It calls change with t.mu
// held.
func (t *Task) save(change func(*saved)) error {
	t.writing.Lock()
	defer t.writing.Unlock()
	t.mu.Lock()
	change(&t.saved)
	s := t.saved
	t.mu.Unlock()
	if s.Phase == erased {
		return nil
	}
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

// erase removes a task's record for good.
func (t *Task) erase() error {
	t.writing.Lock()
	defer t.writing.Unlock()
	if err := os.Remove(t.runtime.recordPath(t.key)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("erase record of task %s: %w", t.key.id, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.saved.Phase = erased
	return nil
}
