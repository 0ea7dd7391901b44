package sandbox

import (
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestEveryPairOfStates(t *testing.T) {
	want := map[State][]State{
		Created:     {Created, Starting, Stopping, Deleting},
		Starting:    {Starting, Running, Deleting},
		Running:     {Running, Stopping, Stopped},
		Stopping:    {Stopping, Stopped},
		Stopped:     {Stopped, Deleting},
		Deleting:    {Deleting, Deleted},
		Deleted:     {Deleted},
		Recovering:  {Recovering, Running, Stopping, Stopped, Deleting, Deleted, Quarantined},
		Quarantined: {Quarantined, Recovering},
	}
	if len(want) != len(transitions) {
		t.Errorf("%d states, want %d", len(transitions), len(want))
	}
	for from := range want {
		for to := range want {
			err := from.to(to)
			if allowed := slices.Contains(want[from], to); allowed != (err == nil) {
				t.Errorf("from %s to %s: %v", from, to, err)
			}
			if err != nil && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("from %s to %s: class of %v", from, to, err)
			}
		}
	}
}

func TestWhatCRISeesOfStates(t *testing.T) {
	// The CRI plugin compares with these, and takes any other for unknown.
	if ready != runtime.PodSandboxState_SANDBOX_READY.String() || notReady != runtime.PodSandboxState_SANDBOX_NOTREADY.String() {
		t.Error("CRI has renamed its states")
	}
	for state, want := range map[State]struct {
		cri      string
		recorded bool
	}{
		Created:     {notReady, true},
		Starting:    {notReady, true},
		Running:     {ready, true},
		Stopping:    {unknown, true},
		Stopped:     {notReady, true},
		Deleting:    {unknown, true},
		Deleted:     {notReady, false},
		Recovering:  {unknown, false},
		Quarantined: {unknown, false},
	} {
		if got := state.cri(); got != want.cri {
			t.Errorf("%s is %s, want %s", state, got, want.cri)
		}
		if got := state.recorded(); got != want.recorded {
			t.Errorf("%s is recorded: %t", state, got)
		}
	}
}
