package vmm

import (
	"fmt"
	"os"

	"github.com/containerd/errdefs"
)

// Part is something of this host that machines need beside the VMM.
type Part struct {
	Name string
	Path string
	Err  error // why there is none, with the remedy
}

// Parts looks for what machines of these options need of this host.
func (o Options) Parts(n Needs) []Part {
	all := []Part{guestPart("kernel", o.Kernel), guestPart("initrd", o.Initrd)}
	if n.Share {
		path, err := o.virtiofsd()
		all = append(all, Part{"virtiofsd", path, err})
	}
	switch {
	case !n.Vsock:
	case o.byKernel():
		_, err := os.Stat(vhostVsock)
		if err != nil {
			err = fmt.Errorf("vsock = %q: %w: load the kernel's module vhost_vsock: %w", o.Vsock, err, errdefs.ErrUnavailable)
		}
		all = append(all, Part{"vsock", vhostVsock, err})
	default:
		path, err := o.vhostDeviceVsock()
		all = append(all, Part{"vsock", path, err})
	}
	return all
}

func guestPart(option, path string) Part {
	_, err := os.Stat(path)
	if err != nil {
		err = fmt.Errorf("%s = %q: %w: build the guest with make guest, or set the option: %w", option, path, err, errdefs.ErrUnavailable)
	}
	return Part{option, path, err}
}
