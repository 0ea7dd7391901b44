package tasks

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
)

// A task that cannot be restored must not look as if it had ended.
func TestDamagedRecord(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "ns"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ns", "c1.json"), []byte(`{"vers`), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx := namespaces.WithNamespace(t.Context(), "ns")
	r, err := New(ctx, Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	found, err := r.Get(ctx, "c1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := found.State(ctx); !errdefs.IsUnavailable(err) {
		t.Errorf("state: got %v, want what containerd does not take for an end", err)
	}
	if err := found.Kill(ctx, 9, true); err == nil {
		t.Error("a task that is not understood is killed")
	}
	if _, err := os.Stat(filepath.Join(dir, "ns", "c1.json")); err != nil {
		t.Error(err)
	}
}
