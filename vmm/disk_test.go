package vmm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
)

// slotless is a machine that takes no disk.
type slotless struct{ VM }

func (slotless) PlugDisk(context.Context, Disk) error {
	return errdefs.ErrFailedPrecondition
}

func (slotless) UnplugDisk(context.Context, string) error { return errdefs.ErrNotFound }

// A disk that failed, of a guest that does not answer, keeps nobody for ever who
// has given up. What is left is noted, for Release.
func TestPrepareGivesUp(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c := container(t, "c")
	c.Rootfs = []mount.Mount{{Type: "ext4", Source: image}}
	synctest.Test(t, func(t *testing.T) {
		life, finish := context.WithCancel(t.Context())
		p := &pod{
			id: "pod", dir: dir, life: life, over: life.Done(), finish: finish, control: slotless{},
			state: state{Started: true}, dialing: make(chan struct{}, 1),
		}
		p.dialing <- struct{}{} // by somebody who waits, too
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		began := time.Now()
		if _, err := p.Prepare(ctx, c); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		if took := time.Since(began); took > 2*undoTime { // the disk's, and the container's
			t.Errorf("it took %v", took)
		}
	})
	if notes, err := os.ReadDir(filepath.Join(dir, disksDir, "c")); len(notes) != 1 {
		t.Errorf("notes %v, %v", notes, err)
	}
}
