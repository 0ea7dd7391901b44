// Package drivers has all drivers of virtual machine monitors in one table.
package drivers

import (
	"github.com/containerd-kuasar/containerd-kuasar/vmm"
	"github.com/containerd-kuasar/containerd-kuasar/vmm/qemu"
)

// All are all there are, by the name that the option hypervisor has. Whether a
// node has what one needs its Check says.
func All() map[string]vmm.Driver {
	return map[string]vmm.Driver{"qemu": qemu.Driver{}}
}

// Prover finds out for all of them whether KVM boots a guest here, and keeps
// what it found in dir.
func Prover(dir string) *qemu.Prover { return qemu.NewProver(dir) }
