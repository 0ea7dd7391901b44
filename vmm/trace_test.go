package vmm_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/containerd-kuasar/containerd-kuasar/internal/trace/tracetest"
	"github.com/containerd-kuasar/containerd-kuasar/vmm/vmmtest"
)

// machined makes a daemon of machines that are only processes, and its directory.
func machined(t *testing.T, d vmmtest.Fake) *cloning {
	t.Helper()
	root(t)
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	c, err := newCloning(ctx, dir, d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer cancel()
		c.close()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
		vmmtest.Leaks(t)
	})
	return c
}

// The phases of a pod's start are all in the trace of the call that starts it,
// and what the guest says lies within them.
func TestTraceBoot(t *testing.T) {
	c := machined(t, vmmtest.Fake{})
	ctx, r := tracetest.Start(c.ctx, t)
	c.ctx = ctx
	if err := c.run("one"); err != nil {
		t.Fatal(err)
	}
	r.Want(`sandbox.Create
sandbox.Start
  vmm.boot
    agent.Info
    vmm.guest
      agent.kernel
      agent.serve
    vmm.machine
    vmm.setup
      agent.Setup
        agent.share
    vmm.share
    vmm.vsock
  vmm.template
`)
	if err := c.remove("one"); err != nil {
		t.Fatal(err)
	}
}

// A clone's guest did not boot for it.
func TestTraceClone(t *testing.T) {
	c := machined(t, vmmtest.Fake{})
	if err := errors.Join(c.run("one"), c.templates.Settled(c.ctx), c.remove("one")); err != nil {
		t.Fatal(err)
	}
	ctx, r := tracetest.Start(c.ctx, t)
	c.ctx = ctx
	if err := errors.Join(c.run("two"), c.remove("two")); err != nil {
		t.Fatal(err)
	}
	r.Want(`sandbox.Create
sandbox.Shutdown
sandbox.Start
  vmm.clone
    vmm.guest
    vmm.machine
    vmm.setup
      agent.Info
      agent.Setup
        agent.share
    vmm.share
    vmm.vsock
  vmm.template
sandbox.Stop
`)
}

// What went wrong is said of the phase that it went wrong in.
func TestTraceFailure(t *testing.T) {
	c := machined(t, vmmtest.Fake{Garbled: true})
	ctx, r := tracetest.Start(c.ctx, t)
	c.ctx = ctx
	if err := c.run("one"); err == nil {
		t.Fatal("it runs")
	}
	for _, name := range []string{"sandbox.Start", "vmm.boot", "vmm.guest"} {
		if s := r.Find(name).Status(); s.Description == "" {
			t.Errorf("%s ended with %+v", name, s)
		}
	}
	if s := r.Find("vmm.machine").Status(); s.Description != "" {
		t.Errorf("vmm.machine ended with %+v", s)
	}
}
