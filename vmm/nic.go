package vmm

import (
	"context"
	"fmt"
	"net"
	"strconv"

	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
	"github.com/containerd-kuasar/containerd-kuasar/vmm/network"
)

// queues of an interface: more need as many CPUs in the guest.
const queues = 1

// join makes a tap for each interface of the pod's network namespace. The caller
// releases them once the VMM has them. On error clear gives back what is joined.
func (p *pod) join(ctx context.Context) (nics []NIC, found []network.Interface, err error) {
	if p.netns == "" {
		return nil, nil, nil
	}
	_, span := trace.Start(ctx, "vmm.network")
	defer span.End(&err)
	if found, err = network.Scan(p.netns); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			release(nics)
		}
	}()
	for _, i := range found {
		n, err := p.tap(i)
		if err != nil {
			return nics, nil, err
		}
		nics = append(nics, n)
	}
	return nics, found, nil
}

// tap makes the one of an interface. The caller releases it.
func (p *pod) tap(i network.Interface) (NIC, error) {
	mac, err := net.ParseMAC(i.MAC)
	if err != nil {
		return NIC{}, fmt.Errorf("interface %s: %w", i.Name, err)
	}
	taps, err := network.Join(p.netns, i, queues)
	if err != nil {
		return NIC{}, err
	}
	return NIC{ID: nicID(i), MAC: mac, MTU: i.MTU, Tap: taps[0], More: taps[1:]}, nil
}

func nicID(i network.Interface) string { return "net" + strconv.Itoa(i.Index) }

// part gives the interfaces back, when the VMM is gone: CNI removes them.
func (p *pod) part() error {
	if p.netns == "" {
		return nil
	}
	return network.Part(p.netns)
}

// release closes this process's files of taps.
func release(nics []NIC) {
	for _, n := range nics {
		n.Tap.Close()
		for _, f := range n.More {
			f.Close()
		}
	}
}
