package vmmtest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/containerd-kuasar/containerd-kuasar/internal/cgroup"
)

// Group is the cgroup parent of pods under test: one for each test binary, and
// the same in processes that it starts.
var Group = group()

func group() string {
	const variable = "VMMTEST_GROUP"
	name := os.Getenv(variable)
	if name == "" {
		name = "/kuasar-test-vmm-" + strconv.Itoa(os.Getpid())
		_ = os.Setenv(variable, name)
	}
	return name
}

// Leaks fails the test if a cgroup, and so maybe a process, is left of pods whose
// cgroup parent is Group. Mounts that are left are where their directory cannot
// be removed.
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
}
