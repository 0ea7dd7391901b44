package vmmtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/vmm"
)

// spy is a driver that knows its last machine.
type spy struct {
	vmm.Driver
	vm vmm.VM
}

// Start implements vmm.Driver.
func (s *spy) Start(ctx context.Context, c vmm.Config) (vm vmm.VM, err error) {
	s.vm, err = s.Driver.Start(ctx, c)
	return s.vm, err
}

// Attach implements vmm.Driver.
func (s *spy) Attach(ctx context.Context, c vmm.Config) (vm vmm.VM, err error) {
	s.vm, err = s.Driver.Attach(ctx, c)
	return s.vm, err
}

// cloner is a spy of a driver that has templates.
type cloner struct {
	*spy
	loads, clones int
	meddle        func(vmm.Config, error) error // after each clone; may be nil
}

// Inputs implements vmm.Templater.
func (c *cloner) Inputs(config vmm.Config) ([]string, string, error) {
	return c.Driver.(vmm.Templater).Inputs(config)
}

// StartTemplate implements vmm.Templater.
func (c *cloner) StartTemplate(ctx context.Context, config vmm.Config) (vmm.Template, error) {
	return c.Driver.(vmm.Templater).StartTemplate(ctx, config)
}

// Load implements vmm.Templater.
func (c *cloner) Load(ctx context.Context, config vmm.Config, dir string) error {
	c.loads++
	return c.Driver.(vmm.Templater).Load(ctx, config, dir)
}

// Resume implements vmm.Templater.
func (c *cloner) Resume(ctx context.Context, config vmm.Config) (vm vmm.VM, err error) {
	c.clones++
	c.vm, err = c.Driver.(vmm.Templater).Resume(ctx, config)
	if c.meddle != nil {
		err = c.meddle(config, err)
	}
	return c.vm, err
}

// plugsDisks fills all slots, also after a restart, and frees them again.
func plugsDisks(t *testing.T, b *bench) {
	b.start()
	if _, ok := b.spy.vm.(vmm.DiskPlugger); !ok {
		t.Skip("the driver has no DiskPlugger")
	}
	image := filepath.Join(b.spec.Dir, "image")
	b.must(os.WriteFile(image, make([]byte, 1<<20), 0o600))
	plug := func(i int) error {
		return b.spy.vm.(vmm.DiskPlugger).PlugDisk(b.ctx, vmm.Disk{ID: fmt.Sprintf("disk-%d", i), Path: image, ReadOnly: true})
	}
	unplug := func(i int) error {
		return b.spy.vm.(vmm.DiskPlugger).UnplugDisk(b.ctx, fmt.Sprintf("disk-%d", i))
	}
	slots := b.s.Options.Slots
	for i := range slots {
		b.must(plug(i))
	}
	b.restore()
	if err := plug(slots); !errdefs.IsResourceExhausted(err) {
		t.Errorf("more disks than slots: %v", err)
	}
	if err := plug(0); err == nil {
		t.Error("a disk was plugged twice")
	}
	b.must(unplug(0))
	b.must(plug(slots))
	b.answers()
	if err := unplug(slots + 1); !errdefs.IsNotFound(err) {
		t.Errorf("unplug what is not there: %v", err)
	}
}
