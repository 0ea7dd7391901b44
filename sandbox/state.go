package sandbox

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
)

// State of a sandbox; the package's comment draws how they follow each other.
type State string

// The first six are recorded; the others are of one daemon's life.
const (
	Created  State = "created"  // nothing but files
	Starting State = "starting" // Start is under way
	Running  State = "running"
	Stopping State = "stopping" // Stop began, and did not end well yet
	Stopped  State = "stopped"  // nothing runs
	Deleting State = "deleting" // what is left of it is being removed

	Deleted     State = "deleted"     // and forgotten: only a call that came before still sees it
	Recovering  State = "recovering"  // the daemon started and its backend reopens it
	Quarantined State = "quarantined" // that failed
)

// transitions lists what may follow a state.
var transitions = map[State][]State{
	Created:     {Starting, Stopping, Deleting},
	Starting:    {Running, Deleting},
	Running:     {Stopping, Stopped},
	Stopping:    {Stopped},
	Stopped:     {Deleting},
	Deleting:    {Deleted},
	Deleted:     nil,
	Recovering:  {Running, Stopping, Stopped, Deleting, Deleted, Quarantined},
	Quarantined: {Recovering},
}

// to checks a transition. A state may be entered again: calls are idempotent.
func (s State) to(next State) error {
	if s == next || slices.Contains(transitions[s], next) {
		return nil
	}
	return fmt.Errorf("a sandbox that is %s cannot become %s: %w", s, next, errdefs.ErrFailedPrecondition)
}

// recorded says whether a record may name the state.
func (s State) recorded() bool {
	switch s {
	case Created, Starting, Running, Stopping, Stopped, Deleting:
		return true
	}
	return false
}

// CRI's names of a sandbox's state: those of runtime.v1.PodSandboxState, and
// the one that the CRI plugin has for itself (sandboxstore.StateUnknown).
const (
	ready    = "SANDBOX_READY"
	notReady = "SANDBOX_NOTREADY"
	unknown  = "SANDBOX_UNKNOWN"
)

// cri is what Status says. It matters most when the CRI plugin starts: it calls
// Stop for what is unknown, and not for what is not ready.
func (s State) cri() string {
	switch s {
	case Running:
		return ready
	case Stopping, Deleting, Recovering, Quarantined:
		return unknown
	}
	return notReady
}
