package vmm

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/vmm/network"
)

// crowded is a machine that has the interface net1 since it started, and no slot.
type crowded struct{ plugged []string }

func (f *crowded) PlugNIC(_ context.Context, n NIC) error {
	f.plugged = append(f.plugged, n.ID)
	return errdefs.ErrResourceExhausted
}

func (*crowded) UnplugNIC(_ context.Context, id string) error {
	if id == "net1" {
		return errdefs.ErrFailedPrecondition
	}
	return errdefs.ErrNotFound
}

// An interface that the machine has already is not plugged a second time, whoever
// recorded that or did not.
func TestPlugWhatIsThere(t *testing.T) {
	m := &crowded{}
	p := &pod{id: "pod", control: m}
	if err := p.plugNIC(t.Context(), network.Interface{Name: "eth0", Index: 1, MAC: "02:00:00:00:00:01"}); err != nil {
		t.Error(err)
	}
	if len(m.plugged) > 0 {
		t.Errorf("plugged: %v", m.plugged)
	}
}

// What fails is tried again, and not more often the more changes there were.
func TestFollowTriesAgainOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p := &pod{life: ctx}
		changed := make(chan struct{}, 1)
		tell := func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		}
		var tries atomic.Int32
		over := make(chan struct{})
		go func() {
			defer close(over)
			p.follow(changed, tell, func(context.Context) error {
				tries.Add(1)
				return errdefs.ErrResourceExhausted
			})
		}()
		const changes = 20
		for range changes {
			change := time.NewTimer(time.Second)
			<-change.C
			tell()
		}
		calm := time.NewTimer(maxHeedRest)
		<-calm.C
		synctest.Wait()
		before := tries.Load()
		if before < changes {
			t.Errorf("%d tries after %d changes", before, changes)
		}
		hour := time.NewTimer(12 * maxHeedRest)
		<-hour.C
		cancel()
		<-over
		if later := tries.Load() - before; later < 10 || later > 12 {
			t.Errorf("%d more tries in 12 times %v", later, maxHeedRest)
		}
	})
}

// A network that never comes to rest is followed, too.
func TestFollowUnrest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p := &pod{life: ctx}
		changed := make(chan struct{}, 1)
		var times atomic.Int32
		over := make(chan struct{})
		go func() {
			defer close(over)
			p.follow(changed, func() {}, func(context.Context) error {
				times.Add(1)
				return nil
			})
		}()
		unrest := time.NewTicker(quietTime / 2)
		for range 5 * maxQuietTime / (quietTime / 2) {
			<-unrest.C
			changed <- struct{}{}
		}
		unrest.Stop()
		cancel()
		<-over
		if n := times.Load(); n < 4 || n > 5 {
			t.Errorf("looked %d times in 5 times %v", n, maxQuietTime)
		}
	})
}
