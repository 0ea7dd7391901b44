package vmm

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/vmm/network"
)

var (
	fpPlugged   = failpoint.New("vmm/nic/plugged")
	fpNetworked = failpoint.New("vmm/nic/networked")
	fpOut       = failpoint.New("vmm/nic/unplugged")
)

const (
	// quietTime is how long a pod's network is left alone after a change: who
	// adds an interface goes on with its addresses and routes.
	quietTime = 100 * time.Millisecond

	// maxQuietTime is how long at most: some networks change all the time.
	maxQuietTime = 2 * time.Second

	// heedTime bounds what a change takes.
	heedTime = 30 * time.Second

	// What failed is tried again after heedRest, twice as long each time in a row
	// up to maxHeedRest: a guest may have been busy, or a slot gets free.
	heedRest, maxHeedRest = 5 * time.Second, 5 * time.Minute
)

// heed has the guest's network follow that of the pod's namespace: CRI
// implementations that start the sandbox first, such as iSulad, add interfaces
// later, and an operator may. What has changed is found by reading all of it
// again, at first what has while no daemon looked. It ends with the pod. A node
// that cannot look is no reason to be without the pod.
func (p *pod) heed() {
	if p.netns == "" {
		return
	}
	changed := make(chan struct{}, 1)
	tell := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	w, err := network.NewWatch(p.netns, tell)
	if err != nil {
		log.L.WithError(err).WithField("sandbox", p.id).Warn("the pod's machine does not get interfaces that are added later")
		return
	}
	go func() {
		defer w.Close()
		p.follow(changed, tell, p.renew)
	}()
}

// follow calls renew at first, after each change, and once more some time after
// it has failed.
func (p *pod) follow(changed <-chan struct{}, tell func(), renew func(context.Context) error) {
	again := time.AfterFunc(0, tell) // the only one: each change may fail
	defer again.Stop()
	var said string
	rest := heedRest
	for p.quiet(changed) {
		err := renew(p.life)
		if err == nil {
			again.Stop()
			said, rest = "", heedRest
			continue
		}
		if err.Error() != said && p.life.Err() == nil {
			said = err.Error()
			log.L.WithError(err).WithField("sandbox", p.id).Warn("the guest's network is not as the pod's")
		}
		again.Reset(rest)
		rest = min(2*rest, maxHeedRest)
	}
}

// quiet waits for a change and the end of those that follow it, but not without
// end. It is false when the pod is over.
func (p *pod) quiet(changed <-chan struct{}) bool {
	select {
	case <-changed:
	case <-p.life.Done():
		return false
	}
	settled := time.NewTimer(quietTime)
	defer settled.Stop()
	enough := time.NewTimer(maxQuietTime)
	defer enough.Stop()
	for {
		select {
		case <-changed:
			settled.Reset(quietTime)
		case <-settled.C:
			return true
		case <-enough.C:
			return true
		case <-p.life.Done():
			return false
		}
	}
}

// renew makes the guest's network that of the pod's namespace.
func (p *pod) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, heedTime)
	defer cancel()
	found, err := network.Scan(p.netns)
	if errdefs.IsNotFound(err) {
		return nil // the pod is being removed
	}
	if err != nil {
		return err
	}
	p.mu.Lock()
	known := slices.Clone(p.state.Network)
	p.mu.Unlock()
	var errs []error
	for _, i := range known {
		if !slices.ContainsFunc(found, func(f network.Interface) bool { return same(f, i) }) {
			errs = append(errs, p.withdraw(ctx, i))
		}
	}
	for _, i := range found {
		k := slices.IndexFunc(known, func(k network.Interface) bool { return same(k, i) })
		if k >= 0 && reflect.DeepEqual(known[k], i) {
			continue
		}
		errs = append(errs, p.adopt(ctx, i, k < 0))
	}
	return errors.Join(errs...)
}

// same says whether two are one interface, which may have changed.
func same(a, b network.Interface) bool { return a.Index == b.Index && a.MAC == b.MAC }

// adopt gives the guest an interface, or what has changed of one. What is recorded
// is what the guest has: an interface that is not is given again.
func (p *pod) adopt(ctx context.Context, i network.Interface, fresh bool) error {
	if fresh {
		if err := p.plugNIC(ctx, i); err != nil {
			return fmt.Errorf("add interface %s: %w", i.Name, err)
		}
		fpPlugged.Hit()
	}
	if err := p.networked(ctx, i); err != nil {
		return fmt.Errorf("set interface %s: %w", i.Name, err)
	}
	fpNetworked.Hit()
	return p.noteNIC(ctx, i, true)
}

func (p *pod) plugNIC(ctx context.Context, i network.Interface) error {
	plugger, ok := p.controls().(NICPlugger)
	if !ok {
		return fmt.Errorf("%s takes none while it runs: %w", p.opts.Hypervisor, errdefs.ErrNotImplemented)
	}
	// What a former attempt has left: its tap is in the way.
	err := plugger.UnplugNIC(ctx, nicID(i))
	if errdefs.IsFailedPrecondition(err) {
		return nil // the machine has had it since it started
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	n, err := p.tap(i)
	if err != nil {
		return err
	}
	defer release([]NIC{n})
	err = plugger.PlugNIC(ctx, n)
	if errdefs.IsResourceExhausted(err) {
		err = fmt.Errorf("%w: make hotplug_slots of the runtime handler larger, and the pod anew", err)
	}
	if err != nil {
		err = errors.Join(err, network.Leave(p.netns, i))
	}
	return err
}

// fixed is a machine that gives no interface back.
type fixed struct{}

func (fixed) PlugNIC(context.Context, NIC) error      { return errdefs.ErrFailedPrecondition }
func (fixed) UnplugNIC(context.Context, string) error { return errdefs.ErrFailedPrecondition }

// withdraw takes an interface from the guest that the pod has no more. One that
// was there when the machine started stays, and has nothing.
func (p *pod) withdraw(ctx context.Context, i network.Interface) error {
	plugger, ok := p.controls().(NICPlugger)
	if !ok {
		plugger = fixed{}
	}
	err := plugger.UnplugNIC(ctx, nicID(i))
	if errdefs.IsFailedPrecondition(err) {
		err = p.networked(ctx, network.Interface{Name: i.Name, MAC: i.MAC})
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove interface %s: %w", i.Name, err)
	}
	fpOut.Hit()
	return p.noteNIC(ctx, i, false)
}

// networked has the guest set an interface.
func (p *pod) networked(ctx context.Context, i network.Interface) error {
	c, err := p.connect(ctx)
	if err != nil {
		return err
	}
	if _, err := c.Guest().Network(ctx, plan([]network.Interface{i})); err != nil {
		return fmt.Errorf("guest: %w", errgrpc.ToNative(err))
	}
	return nil
}

// noteNIC records what the guest has, or has no more.
func (p *pod) noteNIC(ctx context.Context, i network.Interface, has bool) error {
	p.mu.Lock()
	all := slices.DeleteFunc(slices.Clone(p.state.Network), func(k network.Interface) bool { return k.Index == i.Index })
	if has {
		all = append(all, i)
	}
	p.state.Network = all
	p.mu.Unlock()
	return p.saved(ctx)
}
