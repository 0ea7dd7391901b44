package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// counter counts in a file, one line a turn, so that a restored process shows
// that it went on where it was.
const counter = "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.05; done"

// TestCheckpoint checkpoints a container through CRI and restores it as
// another one.
func TestCheckpoint(t *testing.T) {
	// An old criu does not work on a new kernel.
	if out, err := exec.CommandContext(t.Context(), "criu", "check").CombinedOutput(); err != nil {
		t.Skipf("needs a criu that works with this kernel: criu check: %v: %s", err, out)
	}
	each(t, checkpoint)
}

func checkpoint(t *testing.T, n *fixture) {
	p := n.pod(nil)
	c := n.run(p, bed.Script(counter))
	file := filepath.Join(n.Dir, "checkpoint.tar")
	defer func() { _ = os.Remove(file) }()
	_, err := n.Runtime.CheckpointContainer(n.ctx, &runtime.CheckpointContainerRequest{ContainerId: c.ID, Location: file})
	if err != nil {
		if _, path, ok := strings.Cut(err.Error(), ": see "); ok {
			b, _ := os.ReadFile(path)
			t.Logf("XXX %s", b)
		}
	}
	n.must(err)
	before := count(n, c) // goes on after the checkpoint
	restored := n.run(p, func(config *runtime.ContainerConfig) { config.Image.Image = file })
	if after := count(n, restored); after < 1 {
		t.Errorf("count %d after the restore, %d before", after, before)
	}
	n.exec(restored, "first=$(cat /count); until [ $(cat /count) -gt $first ]; do :; done")
}

func count(n *fixture, c *bed.Container) int {
	n.t.Helper()
	value, err := strconv.Atoi(strings.TrimSpace(n.exec(c, "until [ -s /count ]; do :; done; cat /count")))
	n.must(err)
	return value
}
