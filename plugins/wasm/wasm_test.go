package wasm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/engine"
)

func TestCheck(t *testing.T) {
	for name, c := range map[string]struct {
		config Config
		says   string
	}{
		"defaults":      {Config{}, ""},
		"paths":         {Config{Wasmtime: "/a", WasmEdge: "/b", CacheSize: 1}, ""},
		"relative path": {Config{WasmEdge: "b"}, `wasmedge = "b"`},
		"negative size": {Config{CacheSize: -1}, "cache_size = -1"},
	} {
		err := c.config.check()
		if c.says == "" && err != nil || c.says != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	for _, name := range []string{"wasmedge", "other"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	other := filepath.Join(dir, "other")
	for name, c := range map[string]struct {
		config     Config
		engine     string
		want, says string
	}{
		"built in":      {Config{}, engine.Wazero, "", ""},
		"in PATH":       {Config{}, engine.WasmEdge, filepath.Join(dir, "wasmedge"), ""},
		"as configured": {Config{WasmEdge: other}, engine.WasmEdge, other, ""},
		"gone":          {Config{WasmEdge: "/nonexistent"}, engine.WasmEdge, "", `wasmedge = "/nonexistent"`},
		"nowhere":       {Config{}, engine.Wasmtime, "", "set wasmtime below"},
	} {
		got, err := c.config.find(c.engine)
		switch {
		case c.says == "" && (err != nil || got != c.want):
			t.Errorf("%s: %q, %v", name, got, err)
		case c.says != "" && (!errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n")):
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestRegistered(t *testing.T) {
	for _, r := range registry.Graph(func(*plugin.Registration) bool { return false }) {
		if r.Type == plugins.SandboxControllerPlugin && r.ID == "wasm" {
			return
		}
	}
	t.Error("there is no sandboxer wasm")
}
