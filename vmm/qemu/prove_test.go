package qemu

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd-kuasar/containerd-kuasar/vmm"
)

// Whatever is true here, it is found out once.
func TestProve(t *testing.T) {
	o := options(t)
	dir := t.TempDir()
	c := vmm.Config{Kernel: o.Kernel, Initrd: o.Initrd}
	runs := NewProver(dir).Prove(t.Context(), c)
	t.Logf("KVM boots a guest: %t", runs)
	began := time.Now()
	if again := NewProver(dir).Prove(t.Context(), c); again != runs {
		t.Errorf("first %t, then %t", runs, again)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %v to remember", took)
	}
}

// Only a kernel that boots is proof.
func TestBoots(t *testing.T) {
	dir := t.TempDir()
	for name, test := range map[string]struct {
		script string
		runs   bool
	}{
		"boots":   {"echo [ 1.0] Kernel panic - not syncing: no init", true},
		"refuses": {"echo could not access KVM kernel module; exit 1", false},
		"hangs":   {"echo booting; exec tail -f /dev/null", false},
		"slow":    {"for i in 1 2 3 4 5 6 7 8; do sleep 0.2; echo booting; done; echo Kernel panic - not syncing", true},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+test.script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		runs, why := boots(t.Context(), time.Second, []string{path})
		if runs != test.runs || why == "" || strings.Contains(why, "hangs") != (name == "hangs") {
			t.Errorf("%s: %t, %q", name, runs, why)
		}
	}
}
