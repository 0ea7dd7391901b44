package vmm

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

var (
	fpResizeNoted  = failpoint.New("vmm/resize/noted")
	fpResizeCPUs   = failpoint.New("vmm/resize/cpus")
	fpResizeGuest  = failpoint.New("vmm/resize/guest")
	fpResizeMemory = failpoint.New("vmm/resize/memory")
)

// size is of a machine, in bytes.
type size struct {
	CPUs   uint32 `json:"cpus"`
	Memory uint64 `json:"memory"`
}

// Update implements sandbox.Updater: the machine is sized for new limits as it
// was for the first. What has no limit stays as it is. A call that did not end
// is made again by its caller, and goes on where the other one was.
func (p *pod) Update(ctx context.Context, r sandbox.Resources) error {
	if err := p.update(ctx, r); err != nil {
		return fmt.Errorf("resize pod %s: %w", p.id, err)
	}
	return nil
}

func (p *pod) update(ctx context.Context, r sandbox.Resources) error {
	if err := p.running(); err != nil {
		return err
	}
	p.mu.Lock()
	now := size{p.state.CPUs, p.state.Memory}
	o := Options{VCPUs: now.CPUs, Memory: now.Memory, Overhead: p.state.Overhead, MaxVCPUs: p.state.MaxCPUs, MaxMemory: p.state.MaxMemory}
	unfinished := p.state.Resize != nil
	p.mu.Unlock()
	if o.MaxVCPUs == 0 {
		return fmt.Errorf("an earlier release made its machine: make the pod anew: %w", errdefs.ErrNotImplemented)
	}
	want, err := o.resize(now, r)
	if err != nil || want == now && !unfinished {
		return err
	}
	machine, ok := p.controls().(Resizer)
	if !ok {
		return fmt.Errorf("its machine keeps the size that it was started with: make the pod anew: %w", errdefs.ErrNotImplemented)
	}
	if err := p.noteSize(ctx, &want); err != nil {
		return err
	}
	fpResizeNoted.Hit()
	if err := p.resize(ctx, machine, want); err != nil {
		return errors.Join(err, p.saved(ctx))
	}
	return p.noteSize(ctx, nil)
}

// resize is the size that a machine shall have by new limits.
func (o Options) resize(now size, r sandbox.Resources) (want size, err error) {
	l := limits{memory: r.Resources.GetMemoryLimitInBytes(), quota: r.Resources.GetCpuQuota(), period: r.Resources.GetCpuPeriod()}
	if want.CPUs, want.Memory, err = o.size(l); err != nil {
		return now, err
	}
	if most := max(now.CPUs, o.MaxVCPUs); want.CPUs > most {
		return now, fmt.Errorf("%d processors for its limit, its machine has at most %d: raise max_vcpus in the options of its runtime handler, and make the pod anew: %w", want.CPUs, most, errdefs.ErrOutOfRange)
	}
	if most := max(now.Memory, o.MaxMemory); want.Memory > most {
		return now, fmt.Errorf("%d MiB for its limit and the guest, its machine has at most %d: raise max_memory in the options of its runtime handler, and make the pod anew: %w", want.Memory>>20, most>>20, errdefs.ErrOutOfRange)
	}
	return want, nil
}

// noteSize records what the machine is about to be resized to; nil for nothing.
func (p *pod) noteSize(ctx context.Context, to *size) error {
	p.mu.Lock()
	p.state.Resize = to
	p.mu.Unlock()
	return p.saved(ctx)
}

// resize does it, and notes how far it came.
func (p *pod) resize(ctx context.Context, machine Resizer, to size) error {
	if err := machine.PlugCPUs(ctx, to.CPUs); err != nil {
		return err
	}
	p.mu.Lock()
	base := p.state.Memory
	p.mu.Unlock()
	fpResizeCPUs.Hit()
	c, err := p.connect(ctx)
	if err != nil {
		return err
	}
	if _, err := c.Guest().Resize(ctx, &api.ResizeRequest{Cpus: to.CPUs, Memory: to.Memory > base}); err != nil {
		return fmt.Errorf("guest: %w", errgrpc.ToNative(err))
	}
	fpResizeGuest.Hit()
	p.mu.Lock()
	p.state.CPUs = to.CPUs
	p.mu.Unlock()
	has, err := machine.ResizeMemory(ctx, to.Memory)
	if err != nil {
		return err
	}
	fpResizeMemory.Hit()
	p.mu.Lock()
	p.state.Memory = has
	p.mu.Unlock()
	switch {
	case has < to.Memory:
		return fmt.Errorf("the guest took %d of %d MiB of memory until now: it may take the rest, try again: %w", has>>20, to.Memory>>20, errdefs.ErrUnavailable)
	case has > to.Memory:
		log.G(ctx).WithFields(log.Fields{"sandbox": p.id, "wanted": to.Memory, "memory": has}).
			Warn("the machine keeps more memory than the pod's new limit: a guest gives back what it can, and never what the machine was started with")
	}
	return nil
}
