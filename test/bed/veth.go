package bed

import (
	"errors"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Veth is an interface that a test gives a running pod, beside those of CNI. Its
// other end is on this host.
type Veth struct {
	Pod *netlink.Handle // acts in the pod's network namespace
	netlink.Link
}

// VethName is a Veth's in the pod. It has VethFar, this host VethNear, and from
// the pod VethRoute is reached by it.
const (
	VethName  = "added"
	VethNear  = "10.99.0.1"
	VethFar   = "10.99.0.2"
	VethRoute = "10.98.0.0/16"
)

// NewVeth adds one to the pod in whose network namespace a process is. It is gone
// when the pod is, or with Remove.
func NewVeth(pid int) (_ *Veth, err error) {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	near := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "kuasar-test"}, PeerName: VethName, PeerNamespace: netlink.NsFd(ns),
	}
	if err := errors.Join(netlink.LinkAdd(near), netlink.AddrAdd(near, vethAddress(VethNear)), netlink.LinkSetUp(near)); err != nil {
		return nil, err
	}
	pod, err := netlink.NewHandleAt(ns)
	if err != nil {
		return nil, err
	}
	v := &Veth{Pod: pod}
	if v.Link, err = pod.LinkByName(VethName); err == nil {
		err = errors.Join(v.Add(VethFar), pod.LinkSetUp(v), v.route())
	}
	return v, err
}

// Add gives the pod's end another address.
func (v *Veth) Add(ip string) error { return v.Pod.AddrAdd(v, vethAddress(ip)) }

func (v *Veth) route() error {
	_, to, err := net.ParseCIDR(VethRoute)
	if err != nil {
		return err
	}
	return v.Pod.RouteAdd(&netlink.Route{LinkIndex: v.Attrs().Index, Dst: to, Gw: net.ParseIP(VethNear)})
}

// Remove removes both ends.
func (v *Veth) Remove() error {
	defer v.Pod.Close()
	return v.Pod.LinkDel(v)
}

func vethAddress(ip string) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(ip), Mask: net.CIDRMask(24, 32)}}
}
