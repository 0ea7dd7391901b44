package sandbox

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// State of a sandbox; the package's comment draws how they follow each other.
type State string

const (
	Created     State = "created"
	Starting    State = "starting"
	Running     State = "running"
	Stopped     State = "stopped"
	Deleting    State = "deleting"
	Quarantined State = "quarantined"
)

// transitions lists what may follow a state.
var transitions = map[State][]State{
	Created:     {Starting, Stopped, Deleting},
	Starting:    {Running, Stopped, Deleting},
	Running:     {Stopped},
	Stopped:     {Deleting},
	Deleting:    nil,
	Quarantined: {Deleting},
}

// to checks a transition. A state may be entered again: calls are idempotent.
func (s State) to(next State) error {
	if s == next {
		return nil
	}
	for _, t := range transitions[s] {
		if t == next {
			return nil
		}
	}
	return fmt.Errorf("a sandbox that is %s cannot become %s: %w", s, next, errdefs.ErrFailedPrecondition)
}

// CRI's names of a sandbox's state (runtime.v1.PodSandboxState).
const (
	ready    = "SANDBOX_READY"
	notReady = "SANDBOX_NOTREADY"
)

func (s State) cri() string {
	if s == Running {
		return ready
	}
	return notReady
}
