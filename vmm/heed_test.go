package vmm

import (
	"context"
	"testing"

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
