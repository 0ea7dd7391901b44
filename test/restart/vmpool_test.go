package restart

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// poolPoints are those of a machine that is made for the pool, and then given to
// a pod, in their order. That of one that is given back is for the tests of package
// vmm.
var poolPoints = []string{"made", "noted", "placed", "loaded", "taken", "moved", "named"}

// poolKind is a pod whose machine waits for it, if there is one.
var poolKind = kind{bed.VMMPool, func(*runtime.ContainerConfig) {}, []string{"true"}}

// TestVMKilledWithPool kills the daemon while it makes a machine for the pool, and
// while a pod gets one. The pod of another machine must not notice, and nothing
// must be left.
func TestVMKilledWithPool(t *testing.T) {
	n := newVMNodeOf(t, bed.Options{})
	other := n.guestBystander()
	before, err := n.Leaks(n.ctx)
	n.must(err)
	n.must(n.Pooled(n.ctx)) // there is a template from here on
	dir := filepath.Join(n.Dir, "s", "kuasar", "pool")
	for i, point := range poolPoints {
		n.dieWithPool("vmm/pool/" + point)
		other.check(n, i)
		n.removeOthers(other.pod)
		after, err := n.Leaks(n.ctx)
		n.must(err)
		if left := slices.DeleteFunc(after, func(s string) bool { return slices.Contains(before, s) }); len(left) > 0 {
			t.Fatalf("%s: leaks:\n%s", point, strings.Join(left, "\n"))
		}
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%s: %s is left: %v", point, dir, err)
		}
	}
	n.must(n.Pooled(n.ctx))
	if err := n.cycle(poolKind); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	other.end()
	// A daemon has no pool before it has a pod: nothing waits any more.
	n.must(n.Kill())
	n.must(n.Start(n.ctx))
}

// dieWithPool has the daemon die at a point: one pod has the pool filled, and the
// next gets what is in it.
func (n *node) dieWithPool(point string) {
	n.t.Helper()
	n.must(n.Kill())
	n.SetEnviron(failpoint.Env + "=" + point)
	n.must(n.Start(n.ctx))
	while, stop := n.whileAlive()
	before := n.Mark()
	err := while.cycle(poolKind)
	if err == nil {
		_, err = n.AwaitLog(while.ctx, before, bed.PoolFilled)
	}
	if err == nil {
		err = while.cycle(poolKind)
	}
	stop()
	select {
	case <-n.Exited():
	case <-n.ctx.Done():
		n.must(errors.Join(n.ctx.Err(), err))
	}
	n.SetEnviron()
	n.must(n.Kill())
	n.must(n.Start(n.ctx))
}
