package restart

import (
	"strings"
	"testing"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// TestVMKilledWithInterface kills the daemon at each point on the way of an
// interface that is added to a pod that runs, and removed. The next one goes on
// from there.
func TestVMKilledWithInterface(t *testing.T) {
	n := newVMNode(t)
	p, id := n.run("sleep 100000")
	has := "ip addr show " + bed.VethName + " | grep -q " + bed.VethFar
	hasNot := "! ip link show " + bed.VethName
	await := func(condition string) {
		n.exec(id, "until "+condition+"; do sleep 0.1; done >/dev/null 2>&1")
	}
	for _, point := range failpoint.Names() {
		if !strings.HasPrefix(point, interfacePoints) {
			continue
		}
		ok := t.Run(point, func(t *testing.T) {
			n.must(n.Kill())
			n.SetEnviron(failpoint.Env + "=" + point)
			mark := n.Mark()
			n.must(n.Start(n.ctx))
			v, err := bed.NewVeth(n.machine(p)["qemu-system-x86_64"])
			n.must(err)
			if strings.HasSuffix(point, "/unplugged") {
				await(has)
				n.must(v.Remove())
			}
			if !n.died(daemon, mark) {
				t.Fatalf("it did not die at %s: is it on no path?", point)
			}
			n.SetEnviron()
			n.must(n.Kill())
			n.must(n.Start(n.ctx))
			if !strings.HasSuffix(point, "/unplugged") {
				await(has)
				n.exec(id, "ping -c 1 -W 5 "+bed.VethNear)
				n.must(v.Remove())
			}
			await(hasNot)
		})
		if !ok {
			t.FailNow()
		}
	}
}
