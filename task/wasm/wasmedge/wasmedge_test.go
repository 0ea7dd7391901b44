package wasmedge

import (
	"slices"
	"testing"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/runner"
)

func TestRunArgs(t *testing.T) {
	got := runArgs("/code/module.so", runner.Process{
		Args: []string{"/app.wasm", "--flag", "a b"}, Env: []string{"A=1"}, Memory: 1 << 20,
		Dirs: []runner.Dir{{Host: "/root", Guest: "/"}},
	})
	want := []string{"wasmedge", "--dir", "/:/root", "--env", "A=1", "--memory-page-limit", "16", "--", "/code/module.so", "--flag", "a b"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestCompileArgs(t *testing.T) {
	for size, level := range map[int64]string{1: "2", optimized: "2", optimized + 1: "0"} {
		if got := CompileArgs("m", size, "c"); !slices.Contains(got, level) || got[len(got)-2] != "m" || got[len(got)-1] != "c" {
			t.Errorf("%d bytes: %q", size, got)
		}
	}
}

func TestBrief(t *testing.T) {
	for output, want := range map[string]string{
		"[2026-01-01 00:00:00.000] [info] compile start\n[2026-01-01 00:00:00.000] [error] loading failed: length out of bounds, Code: 0x107\n[2026-01-01] [error]  At AST node\n": "loading failed: length out of bounds, Code: 0x107",
		"something else\nand more": "something else",
		"":                         "",
	} {
		if got := Brief(output); got != want {
			t.Errorf("%q: %q, want %q", output, got, want)
		}
	}
}
