package phase_test

import (
	"testing"

	"github.com/containerd-kuasar/containerd-kuasar/task/phase"
)

// BenchmarkOff is a phase of a call that nobody asks about.
func BenchmarkOff(b *testing.B) {
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		phase.Begin(ctx, "phase")()
	}
}
