package e2e

import (
	"testing"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

func helpers(t *testing.T) map[string]int {
	t.Helper()
	count, err := bed.Helpers()
	if err != nil {
		t.Fatal(err)
	}
	return count
}

// TestProcesses holds that a pod of ours has no shim and no pause process,
// however many there are, and that all share one agent. Stock pods beside
// them have both.
func TestProcesses(t *testing.T) {
	b := newBed(t, bed.Options{})
	const pods = 3
	ours, stock := on(t, b, bed.Runc), on(t, b, bed.Stock)
	for range pods {
		p := ours.pod(nil)
		ours.run(p, nil)
		c := ours.run(p, nil)
		equal(t, "exec", ours.exec(c, "echo ok"), "ok")
	}
	got := helpers(t)
	equal(t, "shims", got["shim"], 0)
	equal(t, "pause processes", got["pause"], 0)
	equal(t, "workers", got["worker"], 1)

	for range pods {
		stock.run(stock.pod(nil), nil)
	}
	got = helpers(t)
	equal(t, "shims with stock pods", got["shim"], pods)
	equal(t, "pause processes with stock pods", got["pause"], pods)
	equal(t, "workers", got["worker"], 1)
}
