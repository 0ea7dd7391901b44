package wazero

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/runner"
)

// program is a module whose _start calls proc_exit(7).
const program = "\x00asm\x01\x00\x00\x00" +
	"\x01\x08\x02\x60\x01\x7f\x00\x60\x00\x00" +
	"\x02\x24\x01\x16wasi_snapshot_preview1\x09proc_exit\x00\x00" +
	"\x03\x02\x01\x01" +
	"\x05\x03\x01\x00\x01" +
	"\x07\x13\x02\x06memory\x02\x00\x06_start\x00\x01" +
	"\x0a\x08\x01\x06\x00\x41\x07\x10\x00\x0b"

// TestShare fails when a version of wazero has its machine code elsewhere: its
// memory is every process's own again then, and docs say otherwise.
func TestShare(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "program.wasm")
	if err := os.WriteFile(path, []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Compile(path, dir); err != nil {
		t.Fatal(err)
	}
	m, err := Load(dir, runner.Process{})
	if err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for line := range strings.Lines(string(maps)) {
		found = found || strings.Contains(line, " r-xp ") && strings.HasSuffix(strings.TrimSpace(line), filepath.Join(dir, image))
	}
	if !found {
		t.Errorf("the code is not mapped from its image:\n%s", maps)
	}
	if code, err := m.Run(runner.Process{}); code != 7 || err != nil {
		t.Errorf("exit status %d, %v", code, err)
	}
	if err := m.(*module).runtime.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

// TestShareWithout is an entry of a release that wrote no image, or another.
func TestShareWithout(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"none":         os.Remove,
		"of other use": func(path string) error { return os.WriteFile(path, []byte("other"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "program.wasm")
			if err := os.WriteFile(path, []byte(program), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := Compile(path, dir); err != nil {
				t.Fatal(err)
			}
			if err := spoil(filepath.Join(dir, image)); err != nil {
				t.Fatal(err)
			}
			m, err := Load(dir, runner.Process{})
			if err != nil {
				t.Fatal(err)
			}
			if code, err := m.Run(runner.Process{}); code != 7 || err != nil {
				t.Errorf("exit status %d, %v", code, err)
			}
		})
	}
}
