package guest

import (
	"math"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// plan is an api.Interface that was read.
type plan struct {
	mac        net.HardwareAddr
	name       string
	mtu        int
	addresses  map[netip.Prefix]netip.Prefix // the peer's by one's own
	routes     []netlink.Route               // without the interface
	neighbours map[netip.Addr]net.HardwareAddr
}

// parse reads all before anything is changed.
func parse(interfaces []*api.Interface) ([]plan, error) {
	var plans []plan
	for _, i := range interfaces {
		p, err := parseOne(i)
		if err != nil {
			return nil, invalid("interface %q (%s): %v", i.GetName(), i.GetMac(), err)
		}
		plans = append(plans, p)
	}
	return plans, nil
}

func parseOne(i *api.Interface) (p plan, err error) {
	if p.mac, err = net.ParseMAC(i.GetMac()); err != nil {
		return p, err
	}
	if p.name = i.GetName(); p.name == "" || len(p.name) >= unix.IFNAMSIZ {
		return p, invalid("its name must have 1 to %d bytes", unix.IFNAMSIZ-1)
	}
	if i.GetMtu() > math.MaxInt32 {
		return p, invalid("MTU %d", i.GetMtu())
	}
	p.mtu = int(i.GetMtu())
	p.addresses = map[netip.Prefix]netip.Prefix{}
	for _, a := range i.GetAddresses() {
		prefix, err := netip.ParsePrefix(a.GetPrefix())
		if err != nil {
			return p, err
		}
		peer, err := maybe(a.GetPeer(), netip.ParsePrefix)
		if err != nil {
			return p, err
		}
		p.addresses[prefix] = peer
	}
	for _, r := range i.GetRoutes() {
		route, err := parseRoute(r)
		if err != nil {
			return p, err
		}
		p.routes = append(p.routes, route)
	}
	p.neighbours = map[netip.Addr]net.HardwareAddr{}
	for _, n := range i.GetNeighbours() {
		a, err := netip.ParseAddr(n.GetAddress())
		if err != nil {
			return p, err
		}
		if p.neighbours[a], err = net.ParseMAC(n.GetMac()); err != nil {
			return p, err
		}
	}
	return p, nil
}

func parseRoute(r *api.Route) (netlink.Route, error) {
	to, err := netip.ParsePrefix(r.GetDestination())
	if err != nil {
		return netlink.Route{}, err
	}
	gateway, err := maybe(r.GetGateway(), netip.ParseAddr)
	if err != nil {
		return netlink.Route{}, err
	}
	source, err := maybe(r.GetSource(), netip.ParseAddr)
	if err != nil {
		return netlink.Route{}, err
	}
	if r.GetScope() > math.MaxUint8 || r.GetMtu() > math.MaxInt32 {
		return netlink.Route{}, invalid("route to %s: scope %d, MTU %d", to, r.GetScope(), r.GetMtu())
	}
	n := netlink.Route{
		Dst: toNet(to.Masked()), Src: source.AsSlice(),
		Scope: netlink.Scope(r.GetScope()), Priority: int(r.GetMetric()), MTU: int(r.GetMtu()),
		Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_STATIC,
	}
	if gateway.Is6() && to.Addr().Is4() {
		n.Via = &netlink.Via{AddrFamily: unix.AF_INET6, Addr: gateway.AsSlice()}
	} else {
		n.Gw = gateway.AsSlice()
	}
	if r.GetOnlink() {
		n.SetFlag(netlink.FLAG_ONLINK)
	}
	return n, nil
}

// maybe reads what may be empty, as the zero value.
func maybe[T any](s string, read func(string) (T, error)) (v T, err error) {
	if s == "" {
		return v, nil
	}
	return read(s)
}

func toNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func toPrefix(n *net.IPNet) netip.Prefix {
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones)
}
