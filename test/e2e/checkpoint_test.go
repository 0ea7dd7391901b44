package e2e

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// TestCheckpoint checkpoints a container through CRI, which in this containerd
// cannot restore it.
func TestCheckpoint(t *testing.T) {
	// An old criu does not work on a new kernel.
	if out, err := exec.CommandContext(t.Context(), "criu", "check").CombinedOutput(); err != nil {
		t.Skipf("needs a criu that works with this kernel: criu check: %v: %s", err, out)
	}
	b := newBed(t, bed.Options{})
	for _, handler := range []string{bed.Stock, bed.Runc} {
		t.Run(handler, func(t *testing.T) { checkpoint(t, on(t, b, handler)) })
	}
}

func checkpoint(t *testing.T, n *fixture) {
	c := n.run(n.pod(nil), bed.Script("while :; do sleep 0.05; done"))
	path := filepath.Join(n.Dir, "checkpoint.tar")
	defer func() { _ = os.Remove(path) }()
	_, err := n.Runtime.CheckpointContainer(n.ctx, &runtime.CheckpointContainerRequest{ContainerId: c.ID, Location: path})
	n.must(err)
	equal(t, "exec after the checkpoint", n.exec(c, "echo on"), "on")
	f, err := os.Open(path)
	n.must(err)
	defer f.Close()
	sizes := map[string]int64{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		n.must(err)
		sizes[filepath.Clean(h.Name)] = h.Size
	}
	for _, name := range []string{"config.dump", "spec.dump", "checkpoint/inventory.img", "checkpoint/pages-1.img"} {
		if sizes[name] == 0 {
			t.Errorf("the checkpoint has no %s: %v", name, sizes)
		}
	}
}
