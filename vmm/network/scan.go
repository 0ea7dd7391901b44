package network

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Scan reads what the guest of the pod with that network namespace is to have:
// all its Ethernet interfaces that are up. It changes nothing. An interface or
// route that a guest cannot have is errdefs.ErrFailedPrecondition.
func Scan(netns string) ([]Interface, error) {
	var found []Interface
	err := inside(netns, func(h *netlink.Handle) error {
		links, err := links(h)
		if err != nil {
			return err
		}
		for _, l := range links {
			i, err := read(h, l)
			if err != nil {
				return fmt.Errorf("interface %s: %w", l.Attrs().Name, err)
			}
			found = append(found, i)
		}
		if err := distinct(found); err != nil {
			return err
		}
		return fill(h, found)
	})
	if err != nil {
		return nil, fmt.Errorf("read network of %s: %w", netns, err)
	}
	return found, nil
}

// distinct is an error for interfaces that a guest could not tell apart.
func distinct(all []Interface) error {
	names := map[string]string{}
	for _, i := range all {
		if other, ok := names[i.MAC]; ok {
			return fmt.Errorf("interfaces %s and %s have one MAC, %s (ipvlan does so; a virtual machine needs veth or macvlan): %w", other, i.Name, i.MAC, errdefs.ErrFailedPrecondition)
		}
		names[i.MAC] = i.Name
	}
	return nil
}

// links are those of a pod, in the order of their making.
func links(h *netlink.Handle) ([]netlink.Link, error) {
	all, err := dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	slices.SortFunc(all, func(a, b netlink.Link) int { return cmp.Compare(a.Attrs().Index, b.Attrs().Index) })
	return slices.DeleteFunc(all, func(l netlink.Link) bool { return !joins(l) }), nil
}

// joins says whether a guest gets the interface. Those that are down are the
// kernel's own (tunl0 and its kind), taps are ours or of somebody who reads
// them, and a bridge's ports are the bridge's.
func joins(l netlink.Link) bool {
	a := l.Attrs()
	return a.Flags&net.FlagUp != 0 && a.Flags&net.FlagLoopback == 0 && a.MasterIndex == 0 && l.Type() != "tuntap"
}

func read(h *netlink.Handle, l netlink.Link) (Interface, error) {
	a := l.Attrs()
	if err := ethernet(a); err != nil {
		return Interface{}, err
	}
	i := Interface{Name: a.Name, Index: a.Index, MAC: a.HardwareAddr.String(), MTU: uint32(a.MTU)}
	addresses, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return i, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addresses {
		// What is learned from a router, the guest learns itself, and its
		// link-local address it makes of its MAC.
		if a.Flags&unix.IFA_F_PERMANENT == 0 {
			continue
		}
		if a := address(a); a.Prefix.Addr() != local(l.Attrs().HardwareAddr) {
			i.Addresses = append(i.Addresses, a)
		}
	}
	return i, nil
}

// local is the link-local address that a kernel makes of a MAC (RFC 4291,
// appendix A).
func local(m net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}

func ethernet(a *netlink.LinkAttrs) error {
	if a.EncapType == "ether" && len(a.HardwareAddr) == 6 {
		return nil
	}
	return fmt.Errorf("it is no Ethernet (%s), and a virtual machine has no other: remove it from the pod's networks, or use another runtime handler: %w", a.EncapType, errdefs.ErrFailedPrecondition)
}

func address(a netlink.Addr) Address {
	found := Address{Prefix: prefix(a.IPNet)}
	if a.Peer != nil && !a.Peer.IP.Equal(a.IP) {
		found.Peer = prefix(a.Peer)
	}
	return found
}

// fill adds routes and neighbours.
func fill(h *netlink.Handle, found []Interface) error {
	routes, err := dump(func() ([]netlink.Route, error) { return h.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	neighbours, err := dump(func() ([]netlink.Neigh, error) { return h.NeighList(0, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	for _, r := range routes {
		if len(r.MultiPath) > 0 {
			return fmt.Errorf("route to %v has several next hops, which a guest cannot have: %w", r.Dst, errdefs.ErrFailedPrecondition)
		}
	}
	for n := range found {
		i := &found[n]
		i.Routes = routesOf(i.Index, routes)
		i.Neighbours = neighboursOf(i.Index, neighbours)
	}
	return nil
}

// routesOf are an interface's, those first that gateways of others need. What
// the kernel adds with an address, the guest's adds as well.
func routesOf(index int, all []netlink.Route) []Route {
	var found []Route
	for _, r := range all {
		if r.LinkIndex != index || r.Type != unix.RTN_UNICAST || r.Protocol == unix.RTPROT_KERNEL || r.Protocol == unix.RTPROT_RA {
			continue
		}
		found = append(found, route(r))
	}
	slices.SortStableFunc(found, func(a, b Route) int {
		return cmp.Or(compare(a.Gateway.IsValid(), b.Gateway.IsValid()), -cmp.Compare(a.Destination.Bits(), b.Destination.Bits()))
	})
	return found
}

func route(r netlink.Route) Route {
	found := Route{
		Gateway: addr(r.Gw), Source: addr(r.Src),
		Scope: uint8(r.Scope), Metric: uint32(r.Priority), MTU: uint32(r.MTU),
		Onlink: r.Flags&int(netlink.FLAG_ONLINK) != 0,
	}
	if via, ok := r.Via.(*netlink.Via); ok { // IPv4 by a gateway of IPv6
		found.Gateway = addr(via.Addr)
	}
	switch {
	case r.Dst != nil:
		found.Destination = prefix(r.Dst)
	case r.Family == unix.AF_INET6:
		found.Destination = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	default:
		found.Destination = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return found
}

func neighboursOf(index int, all []netlink.Neigh) []Neighbour {
	var found []Neighbour
	for _, n := range all {
		if n.LinkIndex == index && n.State&unix.NUD_PERMANENT != 0 && len(n.HardwareAddr) == 6 && n.IP != nil {
			found = append(found, Neighbour{Address: addr(n.IP), MAC: n.HardwareAddr.String()})
		}
	}
	slices.SortFunc(found, func(a, b Neighbour) int {
		return cmp.Or(a.Address.Compare(b.Address), strings.Compare(a.MAC, b.MAC))
	})
	return found
}

// tries bounds how often a list that changes while it is read is read again.
const tries = 8

func dump[T any](list func() ([]T, error)) (found []T, err error) {
	for range tries {
		if found, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return found, err
		}
	}
	return nil, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
}

func prefix(n *net.IPNet) netip.Prefix {
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr(n.IP), ones)
}

func addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func compare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}
