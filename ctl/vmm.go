package ctl

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"

	"github.com/containerd-kuasar/containerd-kuasar/guest"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/vmm"
	"github.com/containerd-kuasar/containerd-kuasar/vmm/drivers"
)

// vmm is what pods in virtual machines need.
func (n *Node) vmm(ctx context.Context, h handler) []Part {
	all := []Part{kernel(5, 12), groups()}
	o, err := n.machines(h)
	if err != nil {
		return append(all, bad(err)...)
	}
	driver, ok := drivers.All()[o.Hypervisor]
	if !ok {
		return append(all, Part{"hypervisor", Missing, fmt.Sprintf("there is no %q", o.Hypervisor)})
	}
	c := vmm.Config{VMM: o.Path, Machine: o.Machine, Accel: o.Accel, Kernel: o.Kernel, Initrd: o.Initrd}
	if o.Accel == vmm.Auto {
		c.Accel = vmm.TCG // which there is always; see accel
	}
	detail := ""
	if p, ok := driver.(vmm.Programmer); ok {
		if path, err := p.Program(o.Path); err == nil {
			detail = about(ctx, path)
		}
	}
	all = append(all, found(o.Hypervisor, detail, driver.Check(ctx, c)), n.accel(o.Accel, c))
	all = append(all, owner(o, driver, c.Accel)...)
	for _, p := range o.Parts(driver.Needs()) {
		detail := p.Path
		if p.Name == "virtiofsd" || p.Name == "vsock" && p.Path != "/dev/vhost-vsock" {
			detail = about(ctx, p.Path)
		}
		all = append(all, found(p.Name, detail, p.Err))
	}
	return append(all, agent(o)...)
}

// machines are a handler's options over the plugin's.
func (n *Node) machines(h handler) (vmm.Options, error) {
	text, err := toml.Marshal(n.plugin(pluginVMM))
	if err != nil {
		return vmm.Options{}, fmt.Errorf("configuration of the plugin: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	o, err := vmm.Defaults().With(text)
	if err != nil {
		return o, fmt.Errorf("configuration of the plugin: %w", err)
	}
	return o.With(h.options)
}

// owner says as whom machines run, unless they do not.
func owner(o vmm.Options, driver vmm.Driver, accel vmm.Accel) []Part {
	const name = "user"
	p, ok := driver.(vmm.Programmer)
	if !ok {
		return nil
	}
	program, err := p.Program(o.Path)
	if err == nil {
		err = o.Unprivileged(program, accel)
	}
	switch {
	case err == nil:
		return []Part{{name, OK, "each pod's machine has its own"}}
	case errdefs.IsPermissionDenied(err) || errdefs.IsFailedPrecondition(err):
		return []Part{{name, Limited, "machines run as root, without capabilities: " + brief(err)}}
	}
	return nil
}

// accel says what executes guests. Nothing is started to find out.
func (n *Node) accel(want vmm.Accel, c vmm.Config) Part {
	const name, slow = "acceleration", "machines are emulated, some ten times slower"
	switch want {
	case vmm.TCG:
		return Part{name, Limited, slow + ", as accel = \"tcg\" says"}
	case vmm.KVM:
		return Part{name, OK, "kvm"} // that there is one the driver has checked
	}
	runs, known := drivers.Prover(n.dir()).Known(c)
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err == nil {
		f.Close()
	}
	switch {
	case err != nil:
		return Part{name, Limited, fmt.Sprintf("%s: %v: load the kernel's module kvm_intel or kvm_amd", slow, err)}
	case !known:
		return Part{name, OK, "kvm, if it boots a guest: the first pod finds out"}
	case !runs:
		return Part{name, Limited, slow + ": KVM does not boot a guest here"}
	}
	return Part{name, OK, "kvm"}
}

// agent says whether the guest is of this release, where it has a manifest.
func agent(o vmm.Options) []Part {
	m, err := guest.Read(filepath.Dir(o.Initrd))
	switch {
	case err != nil:
		return nil
	case m.Protocol != api.Protocol:
		return []Part{{"guest", Missing, fmt.Sprintf("its agent %s speaks protocol %d, this release %d: make the guest of this release", m.Agent, m.Protocol, api.Protocol)}}
	}
	return []Part{{"guest", OK, fmt.Sprintf("kernel %s, agent %s", m.Kernel, m.Agent)}}
}
