package tasks

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
)

// A sandboxer that could not start says nothing about its sandboxes, whose
// containers run on.
func TestSandboxerThatIsLeftOut(t *testing.T) {
	for name, change := range map[string]func(*saved){
		"named":   func(*saved) {},
		"unnamed": func(s *saved) { s.Sandboxer = "" },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.must(r.run("c").(*Task).save(change))
			r.absent = true
			r.crash(nil)
			if _, err := r.get("c").State(r.ctx); !errdefs.IsUnavailable(err) {
				t.Errorf("state without the sandboxer: %v", err)
			}
			if n := r.mounts.count("c"); n != 1 {
				t.Errorf("mounts are active %d times", n)
			}
			r.absent = false
			r.crash(nil)
			if s := r.state(r.get("c")); s.Status != runtime.RunningStatus || s.Pid != 101 {
				t.Errorf("state with it: %+v", s)
			}
		})
	}
}

// A sandbox that its sandboxer does not know is gone, and its tasks with it.
func TestSandboxThatIsGone(t *testing.T) {
	r := newRig(t)
	r.run("c")
	r.crash(func() {
		r.agent.lose("c", "")
		r.must(os.RemoveAll(filepath.Join(r.dir, "boxes", podID)))
		delete(r.pods.prepared, "c")
	})
	r.clean("c")
}

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
