package e2e

import (
	"fmt"
	"testing"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// TestInterfaceAddedVM adds an interface to a pod that runs, changes it while no
// daemon does, and removes it.
func TestInterfaceAddedVM(t *testing.T) {
	bed.RequireVMM(t)
	b := newBed(t, bed.Options{})
	for _, handler := range []string{bed.VMM, bed.VMMClone} {
		t.Run(handler, func(t *testing.T) {
			n := on(t, b, handler)
			p := n.pod(nil)
			c := n.run(p, nil)
			v, err := bed.NewVeth(int(n.sandboxes()[p.ID].Pid)) // the machine's namespace is the pod's
			n.must(err)
			n.exec(c, until("ip addr show added | grep -q "+bed.VethFar))
			n.exec(c, "ping -c 1 -W 5 "+bed.VethNear)
			contains(t, "the guest's routes", n.exec(c, "ip route"), bed.VethRoute+" via "+bed.VethNear+" dev added")

			const later = "10.99.0.3"
			n.must(n.Kill())
			n.must(v.Add(later))
			n.must(n.Start(n.ctx))
			n.exec(c, until("ip addr show added | grep -q "+later))
			n.exec(c, "ping -c 1 -W 5 -I "+later+" "+bed.VethNear)

			n.must(v.Remove())
			n.exec(c, until("! ip link show added"))
			contains(t, "CNI's interface", n.exec(c, "ip addr show eth0"), "inet ")
		})
	}
}

// until waits in the pod, for as long as CRI lets it.
func until(condition string) string {
	return fmt.Sprintf("until %s; do sleep 0.1; done >/dev/null 2>&1", condition)
}
