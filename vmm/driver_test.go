package vmm_test

import (
	"testing"

	"github.com/containerd-kuasar/containerd-kuasar/vmm"
	"github.com/containerd-kuasar/containerd-kuasar/vmm/vmmtest"
)

func TestFake(t *testing.T) {
	root(t)
	o := vmm.Defaults()
	o.Accel, o.Kernel, o.Initrd = vmm.TCG, "/dev/null", "/dev/null"
	vmmtest.Run(t, vmmtest.Suite{Driver: vmmtest.Fake{}, Options: o})
}
