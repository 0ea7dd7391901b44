package vmm

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"net/netip"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/containerd/errdefs/pkg/errgrpc"

	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/vmm/network"
)

const (
	// entropySize is what the guest's kernel keeps of random bytes, twice.
	entropySize = 64

	// shmSize of a pod's /dev/shm in bytes, as containerd has it.
	shmSize = 64 << 20
)

// setup makes the guest the pod.
func (p *pod) setup(ctx context.Context, interfaces []network.Interface) (err error) {
	ctx, span := trace.Start(ctx, "vmm.setup")
	defer span.End(&err)
	c, err := p.connect(ctx)
	if err != nil {
		return err
	}
	r, err := p.identity()
	if err != nil {
		return err
	}
	if _, err := c.Guest().Setup(ctx, r); err != nil {
		return fmt.Errorf("guest: %w", errgrpc.ToNative(err))
	}
	if len(interfaces) == 0 {
		return nil
	}
	if _, err := c.Guest().Network(ctx, plan(interfaces)); err != nil {
		return fmt.Errorf("guest: %w", errgrpc.ToNative(err))
	}
	return nil
}

// identity is what makes this guest another than the rest.
func (p *pod) identity() (*api.SetupRequest, error) {
	p.mu.Lock()
	config, key := p.config, p.state.Key
	p.mu.Unlock()
	r := &api.SetupRequest{
		Hostname: config.GetHostname(),
		// As containerd's CRI has them for pods with a network of their own.
		Sysctls: map[string]string{
			"net.ipv4.ip_unprivileged_port_start": "0",
			"net.ipv4.ping_group_range":           "0 2147483647",
		},
		Shares:  []*api.Share{{Tag: Tag, Target: Seen}},
		Time:    timestamppb.Now(),
		Entropy: make([]byte, entropySize),
		ShmSize: shmSize,

		ConsoleKey: key,

		FreePageReporting: p.opts.FreePageReporting,
	}
	maps.Copy(r.Sysctls, config.GetLinux().GetSysctls())
	_, err := rand.Read(r.Entropy)
	return r, err
}

// plan is what the guest gets of its network.
func plan(interfaces []network.Interface) *api.NetworkRequest {
	r := &api.NetworkRequest{}
	for _, i := range interfaces {
		g := &api.Interface{Mac: i.MAC, Name: i.Name, Mtu: i.MTU}
		for _, a := range i.Addresses {
			g.Addresses = append(g.Addresses, &api.Address{Prefix: spell(a.Prefix), Peer: spell(a.Peer)})
		}
		for _, n := range i.Routes {
			g.Routes = append(g.Routes, &api.Route{
				Destination: spell(n.Destination), Gateway: spell(n.Gateway), Source: spell(n.Source),
				Scope: uint32(n.Scope), Metric: n.Metric, Mtu: n.MTU, Onlink: n.Onlink,
			})
		}
		for _, n := range i.Neighbours {
			g.Neighbours = append(g.Neighbours, &api.Neighbour{Address: spell(n.Address), Mac: n.MAC})
		}
		r.Interfaces = append(r.Interfaces, g)
	}
	return r
}

// written is an address or network.
type written interface {
	netip.Addr | netip.Prefix
	IsValid() bool
	String() string
}

func spell[T written](v T) string {
	if !v.IsValid() {
		return ""
	}
	return v.String()
}
