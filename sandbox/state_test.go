package sandbox

import (
	"slices"
	"testing"

	"github.com/containerd/errdefs"
)

func TestEveryPairOfStates(t *testing.T) {
	all := []State{Created, Starting, Running, Stopped, Deleting, Quarantined}
	want := map[State][]State{
		Created:     {Created, Starting, Stopped, Deleting},
		Starting:    {Starting, Running, Stopped, Deleting},
		Running:     {Running, Stopped},
		Stopped:     {Stopped, Deleting},
		Deleting:    {Deleting},
		Quarantined: {Quarantined, Deleting},
	}
	for _, from := range all {
		for _, to := range all {
			err := from.to(to)
			if allowed := slices.Contains(want[from], to); allowed != (err == nil) {
				t.Errorf("from %s to %s: %v", from, to, err)
			}
			if err != nil && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("from %s to %s: class of %v", from, to, err)
			}
		}
		if got := from.cri() == ready; got != (from == Running) {
			t.Errorf("%s is ready: %v", from, got)
		}
	}
}
