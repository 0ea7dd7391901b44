package qemu

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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

// Handlers may have different kernels, in turn.
func TestProofs(t *testing.T) {
	dir := t.TempDir()
	qemu := filepath.Join(dir, "qemu")
	if err := os.WriteFile(qemu, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	p := NewProver(dir)
	var all []vmm.Config
	for i := range maxProofs + 1 {
		c := vmm.Config{VMM: qemu, Kernel: filepath.Join(dir, strconv.Itoa(i))}
		if err := os.WriteFile(c.Kernel, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		what, err := identify(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.remember(proof{what, i%2 == 0}); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	for i, c := range all {
		runs, known := NewProver(dir).Known(c)
		if known != (i > 0) || runs != (known && i%2 == 0) {
			t.Errorf("kernel %d: %t, known %t", i, runs, known)
		}
	}
}

// Only a kernel that boots is proof, and whatever it does nobody waits for ever.
func TestBoots(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	for name, test := range map[string]struct {
		script string
		runs   bool
	}{
		"boots":   {"echo [ 1.0] Kernel panic - not syncing: no init", true},
		"refuses": {"echo could not access KVM kernel module; exit 1", false},
		"silent":  {"exit 1", false},
		"hangs":   {"echo booting; exec tail -f /dev/null", false},
		"slow":    {"for i in 1 2 3 4 5 6 7 8; do sleep 0.2; echo booting; done; echo Kernel panic - not syncing", true},
		"endless": {"while sleep 0.2; do echo booting; done", false},
		"floods":  {"exec tr '\\0' x </dev/zero", false},
		"root":    {"grep -q '^CapEff:.*[1-9a-f]' /proc/self/status && echo Kernel panic - not syncing || echo it has no capabilities", false},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, []byte("#!/bin/sh\n"+test.script+"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			runs, why := boots(t.Context(), time.Second, 4*time.Second, []string{path})
			if runs != test.runs || why == "" && name != "floods" || strings.Contains(why, "hangs") != (name == "hangs" || name == "endless") {
				t.Errorf("%t, %q", runs, why)
			}
		})
	}
}

// doomed proves for ever; see TestMain.
func doomed(script string) {
	boots(context.Background(), time.Hour, time.Hour, []string{script, strconv.Itoa(os.Getpid())})
}

// A daemon that is killed leaves no QEMU that proves something.
func TestProofEndsWithDaemon(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	script, pipe := filepath.Join(dir, "qemu"), filepath.Join(dir, "alive")
	// Nobody else has the pipe open for writing: it ends with the process.
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexec >"+pipe+"\nkill -9 $1\nexec tail -f /dev/null\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	daemon := exec.CommandContext(t.Context(), os.Args[0], doomedProof, script)
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(pipe)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("it lives on: %v", err)
	}
	_ = daemon.Wait()
}
