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

// templatePoints are those of the making of a template, in their order. That of
// a removal and that of a clone that fails are for the tests of package vmm.
var templatePoints = []string{"made", "noted", "booted", "saved", "ready", "kept"}

// cloneKind is a pod whose machine is a clone, or that has a template made.
var cloneKind = kind{bed.VMMClone, func(*runtime.ContainerConfig) {}, []string{"true"}}

// TestVMKilledWithTemplate kills the daemon while it makes a template. The pod of
// another machine must not notice, and of the template nothing is left unless it
// is whole: then it is cloned.
func TestVMKilledWithTemplate(t *testing.T) {
	n := newVMNodeOf(t, bed.Options{})
	other := n.guestBystander()
	before, err := n.Leaks(n.ctx)
	n.must(err)
	dir := filepath.Join(n.Dir, "s", "kuasar", "templates")
	for i, point := range templatePoints {
		n.dieWhileMaking("vmm/template/" + point)
		other.check(n, i)
		n.removeOthers(other.pod)
		after, err := n.Leaks(n.ctx)
		n.must(err)
		if left := slices.DeleteFunc(after, func(s string) bool { return slices.Contains(before, s) }); len(left) > 0 {
			t.Fatalf("%s: leaks:\n%s", point, strings.Join(left, "\n"))
		}
		want := 0
		if point == "kept" {
			want = 1
		}
		if whole, err := os.ReadDir(dir); err != nil || len(whole) != want {
			t.Fatalf("%s: templates %v, %v", point, whole, err)
		}
	}
	if err := n.cycle(cloneKind); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	if log := n.Log(0); strings.Contains(log, "pods boot, which is slower") || strings.Contains(log, "template made") {
		t.Errorf("it was not cloned:\n%s", log)
	}
	other.end()
}

// dieWhileMaking has the daemon die at a point while the template of a pod is
// made, and starts the next.
func (n *node) dieWhileMaking(point string) {
	n.t.Helper()
	n.must(n.Kill())
	n.SetEnviron(failpoint.Env + "=" + point)
	n.must(n.Start(n.ctx))
	while, stop := n.whileAlive()
	err := while.cycle(cloneKind) // it has died meanwhile, or will
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
