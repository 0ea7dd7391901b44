package wasm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-kuasar/containerd-kuasar/task/server"
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

func TestOpen(t *testing.T) {
	root := t.TempDir()
	for _, path := range []string{"data/tool", "bin/tool", "bin/other", "sbin/other", "app/deep/tool"} {
		path = filepath.Join(root, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	spec := &specs.Spec{Root: &specs.Root{Path: root}}
	for name, want := range map[string]string{
		"/bin/tool":  "bin/tool",
		"tool":       "data/tool", // as it was before PATH
		"other":      "sbin/other",
		"../app":     "app",
		"deep/tool":  "", // no name: PATH is not for it
		"none":       "",
		"/tool":      "",
		"../../..":   ".",
		"tool/below": "",
	} {
		process := &specs.Process{Args: []string{name}, Cwd: "/data", Env: []string{"A=b", "PATH=/sbin:/bin:/app"}}
		f, err := open(spec, process)
		if want == "" {
			if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), filepath.Base(name)) {
				t.Errorf("%s: got %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd())); err != nil || path != filepath.Join(root, want) {
			t.Errorf("%s is %s, %v", name, path, err)
		}
		f.Close()
	}
}

// TestExecRefuses holds that what is no module is told from one that is broken.
func TestExecRefuses(t *testing.T) {
	r := newRig(t)
	r.file("text", "#!/bin/sh")
	r.file("short", "\x00asm\x01\x00\x00\x00\x01")
	r.save()
	for name, class := range map[string]func(error) bool{
		"/text":  errdefs.IsNotImplemented,
		"/none":  errdefs.IsNotImplemented,
		"none":   errdefs.IsNotImplemented,
		"/short": errdefs.IsInvalidArgument,
	} {
		_, err := r.Exec(t.Context(), r.ref, server.Process{Exec: &specs.Process{Args: []string{name}, Cwd: "/"}})
		if !class(err) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
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
