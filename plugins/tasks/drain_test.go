package tasks

import (
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"

	"github.com/containerd-kuasar/containerd-kuasar/task/stdio"
)

// A Delete waits no longer for output that a guest does not end.
func TestDrainEnds(t *testing.T) {
	h, err := newStreams()
	if err != nil {
		t.Fatal(err)
	}
	c, err := h.Open(t.Context(), stdio.Config{Namespace: "n", Container: "c"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p := newProcess(&Task{key: key{"n", "c"}}, "", runtime.IO{})
	p.carrier = c // of a guest that was not reached: none of its output comes
	close(p.done)
	began := time.Now()
	p.drain(t.Context())
	if took := time.Since(began); took < drainTime || took > 5*drainTime {
		t.Errorf("after %v", took)
	}
}
