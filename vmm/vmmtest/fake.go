// Package vmmtest is what drivers and the backend for virtual machines are
// tested with: a machine that is a process of the test's own binary, and the
// conformance suite of drivers.
package vmmtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/vmm"
)

// Fake is a Driver whose machines are processes of this binary, which must call
// Main. They need nothing of the host and have hybrid vsock and an agent that
// knows no containers.
type Fake struct {
	// Mute machines never say hello, Garbled ones say nonsense, and Other ones have
	// an agent of another release.
	Mute, Garbled, Other bool
	// Broken is what Start returns after it launched the process.
	Broken error
	// Lost is for a VMM that is not installed.
	Lost bool
	// Barren templates end before they can be saved, and Sterile ones have
	// clones that end before they say hello; Stillborn are those of clones that
	// end before anybody resumes them.
	Barren, Sterile, Stillborn bool
}

var (
	_ vmm.Driver    = Fake{}
	_ vmm.Templater = Fake{}
)

// Needs implements vmm.Driver.
func (Fake) Needs() vmm.Needs { return vmm.Needs{} }

// Check implements vmm.Driver.
func (f Fake) Check(context.Context, vmm.Config) error {
	if f.Lost {
		return fmt.Errorf("the fake is not installed: %w", errdefs.ErrUnavailable)
	}
	return nil
}

// Start implements vmm.Driver.
func (f Fake) Start(ctx context.Context, c vmm.Config) (vmm.VM, error) {
	mode := "well"
	switch {
	case f.Mute:
		mode = "mute"
	case f.Garbled:
		mode = "garbled"
	case f.Other:
		mode = "other"
	}
	return start(ctx, c, mode, f.Broken)
}

func start(ctx context.Context, c vmm.Config, mode string, broken error, more ...*os.File) (vmm.VM, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	command := vmm.Command{Args: []string{self, guestCommand, c.Vsock.Path, mode}, Files: append([]*os.File{c.Console}, more...)}
	if err := c.Launch(ctx, command); err != nil {
		return nil, err
	}
	return machine{filepath.Join(c.Dir, c.Vsock.Path), c}, broken
}

// Inputs implements vmm.Templater.
func (Fake) Inputs(c vmm.Config) (files []string, text string, err error) {
	return []string{c.Kernel, c.Initrd}, fmt.Sprint(c.CPUs, c.Memory, c.Cmdline), nil
}

// StartTemplate implements vmm.Templater.
func (f Fake) StartTemplate(ctx context.Context, c vmm.Config) (vmm.Template, error) {
	c.Vsock.Path = "v"
	mode := "template"
	if f.Barren {
		mode = "ends"
	}
	vm, err := start(ctx, c, mode, nil)
	if err != nil {
		return nil, err
	}
	return template{vm}, nil
}

type template struct{ vmm.VM }

// content is what a fake machine consists of.
const content = "all of the machine"

// Save implements vmm.Template.
func (template) Save(_ context.Context, dir string) error {
	return os.WriteFile(filepath.Join(dir, "machine"), []byte(content), 0o600)
}

// resume is the socket by which a loaded machine learns that it may go on.
const resume = "resume"

// Load implements vmm.Templater.
func (f Fake) Load(ctx context.Context, c vmm.Config, dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "machine"))
	if err != nil {
		return err
	}
	if string(b) != content {
		return fmt.Errorf("%q is no machine: %w", b, errdefs.ErrDataLoss)
	}
	wait, err := vmm.Inherit(filepath.Join(c.Dir, resume))
	if err != nil {
		return err
	}
	defer wait.Close()
	c.Vsock.Path = "v"
	mode := "loaded"
	switch {
	case f.Sterile:
		mode = "sterile"
	case f.Stillborn:
		mode = "ends"
	}
	_, err = start(ctx, c, mode, f.Broken, wait)
	return err
}

// Resume implements vmm.Templater.
func (f Fake) Resume(ctx context.Context, c vmm.Config) (vmm.VM, error) {
	conn, err := vmm.Dial(ctx, filepath.Join(c.Dir, resume))
	if err != nil {
		return nil, err
	}
	return f.machine(c), conn.Close()
}

// Attach implements vmm.Driver.
func (f Fake) Attach(_ context.Context, c vmm.Config) (vmm.VM, error) {
	return f.machine(c), nil
}

func (Fake) machine(c vmm.Config) vmm.VM { return machine{filepath.Join(c.Dir, "v"), c} }

// machine is known by its vsock.
type machine struct {
	path   string
	config vmm.Config
}

// Main makes a process of this binary the guest that it was started as. Call it
// first in TestMain.
func Main() {
	if len(os.Args) != 4 || os.Args[1] != guestCommand {
		return
	}
	// One that is left over by a failed test is not so for ever.
	time.AfterFunc(guestLife, func() { os.Exit(3) })
	if err := guest(os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

const (
	guestCommand = "vmmtest-guest"
	guestLife    = 5 * time.Minute
)
