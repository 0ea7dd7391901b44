package wasm

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/engine"
)

// TestCompileWhatWasAsked has a module change after its digest was taken: the
// cache must never have something else for that.
func TestCompileWhatWasAsked(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "a.wasm"), []byte("\x00asm\x01\x00\x00\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := &specs.Spec{Root: &specs.Root{Path: root}}
	process := &specs.Process{Args: []string{"/a.wasm"}, Cwd: "/"}
	r := New(Config{Begin: func() func() { return func() {} }, Dir: t.TempDir()})
	err := r.compile(spec, process, engine.Options{Engine: engine.Wazero}, "of another", t.TempDir())
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "changed") {
		t.Errorf("got %v", err)
	}
}

func TestSettle(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(s *specs.Spec)
		says  string
	}{
		"nothing":            {func(*specs.Spec) {}, ""},
		"no root":            {func(s *specs.Spec) { s.Root = nil }, "root.path"},
		"no arguments":       {func(s *specs.Spec) { s.Process.Args = nil }, "process.args"},
		"relative cwd":       {func(s *specs.Spec) { s.Process.Cwd = "x" }, `"x"`},
		"user namespace":     {func(s *specs.Spec) { s.Linux.Namespaces[0].Type = specs.UserNamespace }, "user namespace"},
		"network of its own": {func(s *specs.Spec) { s.Linux.Namespaces[0].Path = "" }, "network namespace"},
		"not for Linux":      {func(s *specs.Spec) { s.Linux = nil }, ""},
	} {
		spec := &specs.Spec{
			Root: &specs.Root{Path: "rootfs"}, Process: &specs.Process{Args: []string{"/a.wasm"}, Cwd: "/"},
			Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/net"}}},
		}
		c.spoil(spec)
		err := settle("/bundle", spec, spec.Process)
		switch {
		case c.says == "" && (err != nil || spec.Root.Path != "/bundle/rootfs"):
			t.Errorf("%s: %v, root %s", name, err, spec.Root.Path)
		case c.says != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestOnce(t *testing.T) {
	full, calls := errors.New("disk is full"), 0
	get := once(func() (string, error) {
		if calls++; calls == 1 {
			return "", full
		}
		return "made", nil
	})
	if _, err := get(); !errors.Is(err, full) {
		t.Errorf("first: %v", err)
	}
	for range 2 {
		if path, err := get(); path != "made" || err != nil {
			t.Errorf("then: %q, %v", path, err)
		}
	}
	if calls != 2 {
		t.Errorf("%d calls", calls)
	}
}
