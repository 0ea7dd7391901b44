package e2e

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// helpers are the processes that hold pods and do not belong to them.
func helpers(t *testing.T) map[string]int {
	t.Helper()
	all, err := bed.Processes()
	if err != nil {
		t.Fatal(err)
	}
	count := make(map[string]int)
	for _, p := range all {
		switch {
		case len(p.Args) == 0:
		case strings.HasPrefix(filepath.Base(p.Args[0]), "containerd-shim"):
			count["shim"]++
		case filepath.Base(p.Args[0]) == "pause" || p.Name == "pause" || slices.Contains(p.Args, "pause"):
			count["pause"]++
		case filepath.Base(p.Args[0]) == "kuasar-task":
			count["agent"]++
		}
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
	equal(t, "agents", got["agent"], 1)

	for range pods {
		stock.run(stock.pod(nil), nil)
	}
	got = helpers(t)
	equal(t, "shims with stock pods", got["shim"], pods)
	equal(t, "pause processes with stock pods", got["pause"], pods)
	equal(t, "agents", got["agent"], 1)
}
