package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/task/phase"
)

// Network implements api.GuestService.
func (g *Guest) Network(ctx context.Context, r *api.NetworkRequest) (*api.NetworkResponse, error) {
	plans, err := parse(r.Interfaces)
	if err != nil {
		return nil, err
	}
	if err := g.take(ctx); err != nil {
		return nil, err
	}
	defer g.pass()
	driver := phase.Begin(ctx, "driver")
	err = g.modules.Load("virtio_net")
	driver()
	if err != nil {
		return nil, err
	}
	if err := setNetwork(ctx, plans); err != nil {
		return nil, err
	}
	return &api.NetworkResponse{}, nil
}

// setNetwork acts in the network namespace of the calling thread.
func setNetwork(ctx context.Context, plans []plan) error {
	for _, p := range plans {
		if err := p.apply(ctx); err != nil {
			return fmt.Errorf("set interface %s (%s): %w", p.name, p.mac, err)
		}
	}
	return nil
}

// apply makes the interface what is planned.
func (p plan) apply(ctx context.Context) error {
	defer phase.Begin(ctx, "interface")()
	var link netlink.Link
	err := await(ctx, func() (ok bool, err error) {
		link, err = byMAC(p.mac)
		return link != nil, err
	})
	if err != nil {
		return fmt.Errorf("look for it: %w", err)
	}
	if err := rename(link, p.name); err != nil {
		return err
	}
	if p.mtu > 0 && link.Attrs().MTU != p.mtu {
		if err := netlink.LinkSetMTU(link, p.mtu); err != nil {
			return fmt.Errorf("set MTU %d: %w", p.mtu, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set it up: %w", err)
	}
	for _, set := range []func(netlink.Link) error{p.setAddresses, p.setRoutes, p.setNeighbours} {
		if err := set(link); err != nil {
			return err
		}
	}
	return nil
}

// byMAC returns nil if there is none.
func byMAC(mac net.HardwareAddr) (netlink.Link, error) {
	all, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range all {
		if bytes.Equal(l.Attrs().HardwareAddr, mac) {
			return l, nil
		}
	}
	return nil, nil
}

// rename gives link its name. The kernel numbers interfaces as it finds them,
// so that another one may have it.
func rename(link netlink.Link, name string) error {
	a := link.Attrs()
	if a.Name == name {
		return nil
	}
	other, err := netlink.LinkByName(name)
	switch {
	case err == nil:
		if err := setName(other, "other"+strconv.Itoa(other.Attrs().Index)); err != nil {
			return fmt.Errorf("make place for %s: %w", name, err)
		}
	case !errors.As(err, new(netlink.LinkNotFoundError)):
		return fmt.Errorf("look for %s: %w", name, err)
	}
	if err := setName(link, name); err != nil {
		return fmt.Errorf("rename %s: %w", a.Name, err)
	}
	return nil
}

// setName needs the interface to be down.
func setName(link netlink.Link, name string) error {
	if err := netlink.LinkSetDown(link); err != nil {
		return err
	}
	return netlink.LinkSetName(link, name)
}

func (p plan) setAddresses(link netlink.Link) error {
	have, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range have {
		if _, wanted := p.addresses[toPrefix(a.IPNet)]; wanted || a.IP.IsLinkLocalUnicast() && a.IP.To4() == nil {
			continue // the kernel's own, made of the MAC
		}
		if err := netlink.AddrDel(link, &a); err != nil {
			return fmt.Errorf("remove address %s: %w", a.IPNet, err)
		}
	}
	for prefix, peer := range p.addresses {
		a := &netlink.Addr{IPNet: toNet(prefix)}
		if peer.IsValid() {
			a.Peer = toNet(peer)
		}
		if prefix.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD // it was the pod's before: nobody else has it
		}
		if err := netlink.AddrReplace(link, a); err != nil {
			return fmt.Errorf("add address %s: %w", prefix, err)
		}
	}
	return nil
}

func (p plan) setRoutes(link netlink.Link) error {
	have, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	wanted := map[hop]bool{}
	for _, r := range p.routes {
		wanted[toHop(&r)] = true
	}
	for _, r := range have {
		if wanted[toHop(&r)] || r.Protocol == unix.RTPROT_KERNEL || r.Protocol == unix.RTPROT_RA {
			continue
		}
		if err := netlink.RouteDel(&r); err != nil {
			return fmt.Errorf("remove route %s: %w", r, err)
		}
	}
	for _, r := range p.routes {
		r.LinkIndex = link.Attrs().Index
		if err := netlink.RouteReplace(&r); err != nil {
			return fmt.Errorf("add route %s: %w", r, err)
		}
	}
	return nil
}

// hop is what makes two routes of an interface the same one.
type hop struct {
	to      netip.Prefix
	gateway netip.Addr
	metric  int
}

func toHop(r *netlink.Route) hop {
	h := hop{metric: r.Priority}
	if r.Dst != nil {
		h.to = toPrefix(r.Dst)
	}
	gateway := r.Gw
	if via, ok := r.Via.(*netlink.Via); ok {
		gateway = via.Addr
	}
	if a, ok := netip.AddrFromSlice(gateway); ok {
		h.gateway = a.Unmap()
	}
	if h.to.Addr().Is6() && h.metric == 0 {
		h.metric = 1024 // IP6_RT_PRIO_USER: the kernel has no 0 there
	}
	return h
}

func (p plan) setNeighbours(link netlink.Link) error {
	index := link.Attrs().Index
	have, err := dump(func() ([]netlink.Neigh, error) { return netlink.NeighList(index, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	for _, n := range have {
		a, _ := netip.AddrFromSlice(n.IP)
		if _, wanted := p.neighbours[a.Unmap()]; wanted || n.State&netlink.NUD_PERMANENT == 0 {
			continue
		}
		if err := netlink.NeighDel(&n); err != nil {
			return fmt.Errorf("remove neighbour %s: %w", n.IP, err)
		}
	}
	for a, mac := range p.neighbours {
		n := &netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac}
		if err := netlink.NeighSet(n); err != nil {
			return fmt.Errorf("add neighbour %s: %w", a, err)
		}
	}
	return nil
}

// dump lists again what changed while it was listed.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	for {
		all, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
}
