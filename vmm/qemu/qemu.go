// Package qemu runs virtual machines with QEMU, version 7 and later.
//
// A machine is described wholly by QEMU's command line. QMP, QEMU's control
// protocol, is for what changes later: a connection is made when there is
// something to say and closed afterwards, so that an idle machine costs the
// daemon nothing and a new daemon has nothing to resume. The socket is made by
// us and given to QEMU as a descriptor: it can be connected to from the start.
package qemu

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"

	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
	"github.com/containerd-kuasar/containerd-kuasar/vmm"
)

// Driver implements vmm.Driver.
type Driver struct{}

var (
	_ vmm.Driver     = Driver{}
	_ vmm.Programmer = Driver{}
)

// programs are QEMU's for each architecture (GOARCH) that we know a machine of.
var programs = map[string]string{"amd64": "qemu-system-x86_64"}

// Program is the path of QEMU: given, or as found in PATH.
func Program(given string) (string, error) {
	if given != "" {
		if _, err := os.Stat(given); err != nil {
			return "", fmt.Errorf("QEMU: %w: install it there or correct the path: %w", err, errdefs.ErrUnavailable)
		}
		return given, nil
	}
	name, ok := programs[goruntime.GOARCH]
	if !ok {
		return "", fmt.Errorf("QEMU: no machine is known for %s: %w", goruntime.GOARCH, errdefs.ErrUnavailable)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("QEMU is not installed (Debian's package qemu-system-x86): %w: %w", err, errdefs.ErrUnavailable)
	}
	return filepath.Abs(path)
}

// Program implements vmm.Programmer.
func (Driver) Program(given string) (string, error) { return Program(given) }

// Needs implements vmm.Driver.
func (Driver) Needs() vmm.Needs { return vmm.Needs{Share: true, Vsock: true} }

// Check implements vmm.Driver.
func (Driver) Check(_ context.Context, c vmm.Config) error {
	if _, err := Program(c.VMM); err != nil {
		return err
	}
	if c.Accel == vmm.KVM {
		f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
		if err != nil {
			return fmt.Errorf("accel = %q: %w: load the kernel's module kvm, or set accel to %q: %w", vmm.KVM, err, vmm.TCG, errdefs.ErrUnavailable)
		}
		f.Close()
	}
	switch c.Machine {
	case "", Q35:
	default:
		return fmt.Errorf("machine = %q: QEMU's machine is %q: %w", c.Machine, Q35, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Start implements vmm.Driver. QEMU checks its command line itself: if it takes
// offence the process ends.
func (Driver) Start(ctx context.Context, c vmm.Config) (vmm.VM, error) {
	m, err := launch(ctx, c, func(l *line) error { return l.machine(c) })
	if err != nil {
		return nil, err
	}
	return m, nil
}

// launch runs QEMU. When it returns nobody but QEMU has its control socket, so
// that a connection ends if QEMU does.
func launch(ctx context.Context, c vmm.Config, describe func(*line) error) (_ *machine, err error) {
	ctx, span := trace.Start(ctx, "qemu.launch")
	defer span.End(&err)
	program, err := Program(c.VMM)
	if err != nil {
		return nil, err
	}
	m := newMachine(c)
	listener, err := vmm.Inherit(m.path)
	if err != nil {
		return nil, fmt.Errorf("make QEMU's control socket: %w", err)
	}
	defer listener.Close()
	l := newLine(program, listener)
	if err := describe(l); err != nil {
		return nil, err
	}
	return m, c.Launch(ctx, vmm.Command{Args: l.args, Files: l.files})
}

// Attach implements vmm.Driver.
func (Driver) Attach(_ context.Context, c vmm.Config) (vmm.VM, error) {
	return newMachine(c), nil
}
