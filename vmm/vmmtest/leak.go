package vmmtest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd-kuasar/containerd-kuasar/internal/cgroup"
)

// Group is the cgroup parent of pods under test.
const Group = "/kuasar-test-vmm"

// Leaks fails the test if there is a cgroup or a process left of pods whose
// cgroup parent is Group, or a mount of any.
func Leaks(t *testing.T) {
	t.Helper()
	all, err := cgroup.Hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range all {
		// It is empty if all of its pods are gone.
		if err := os.Remove(filepath.Join(dir, Group)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("leak: %v", err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, "/boxes/") {
			t.Errorf("leak: mount %s", line)
		}
	}
}
