package binary

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

func TestFind(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if path, err := Find("kuasar-other"); !errdefs.IsNotFound(err) {
		t.Errorf("nowhere: %q, %v", path, err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The later one is found first.
	for _, path := range []string{filepath.Join(dir, "kuasar-other"), filepath.Join(filepath.Dir(self), "kuasar-other")} {
		if err := os.WriteFile(path, nil, 0o755); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(path)
		if got, err := Find("kuasar-other"); err != nil || got != path {
			t.Errorf("got %q, %v, want %q", got, err, path)
		}
	}
}
