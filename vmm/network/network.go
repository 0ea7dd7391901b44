// Package network gives a pod's network to its machine. CNI makes interfaces in
// the pod's network namespace; each gets a tap beside it, and what arrives at
// one leaves by the other. The guest takes over the interface's MAC, addresses,
// routes and fixed neighbours.
//
//	host ── veth ─┬─ eth0 (pod's namespace)
//	              │ redirected at ingress, both ways, before any protocol
//	              └─ tap ── VMM ── eth0 (guest)
//
// The interface keeps its addresses: the namespace's own stack sees no frame of
// it any more, and CNI plugins look for them there when they check and remove
// it. So the namespace itself is the record of all that is here: it can be read
// again at any time, and nothing needs to be remembered across a crash. Taps
// live as long as the VMM holds them.
package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/thread"
)

// Interface is what a guest is to have. In a machine it is found by its MAC.
type Interface struct {
	Name       string
	Index      int    // in the pod's namespace
	MAC        string // as net.ParseMAC reads it
	MTU        uint32 // bytes
	Addresses  []Address
	Routes     []Route // in the order in which they can be added
	Neighbours []Neighbour
}

// Address is one of an interface.
type Address struct {
	Prefix netip.Prefix // with the host's bits
	Peer   netip.Prefix // of the other end; the zero value if there is none
}

// Route of the main table.
type Route struct {
	Destination netip.Prefix
	Gateway     netip.Addr // the zero value for what is on the link
	Source      netip.Addr // preferred; may be the zero value
	Scope       uint8      // rtnetlink(7)
	Metric      uint32
	MTU         uint32 // 0 for the interface's
	Onlink      bool   // the gateway need not be in an address's network
}

// Neighbour whose MAC is fixed.
type Neighbour struct {
	Address netip.Addr
	MAC     string
}

// inside calls f in the network namespace at path, with a netlink socket of it.
// A namespace that is not there is errdefs.ErrNotFound.
func inside(path string, f func(*netlink.Handle) error) error {
	ns, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("network namespace: %w: %w", err, errdefs.ErrNotFound)
	case err != nil:
		return fmt.Errorf("network namespace: %w", err)
	}
	defer ns.Close()
	return thread.Do(func() error { return enter(ns, f) })
}

func enter(ns *os.File, f func(*netlink.Handle) error) error {
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		if err == unix.EINVAL { // a file where a namespace was pinned once
			return fmt.Errorf("%s is no network namespace: %w", ns.Name(), errdefs.ErrNotFound)
		}
		return fmt.Errorf("enter network namespace %s: %w", ns.Name(), err)
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in %s: %w", ns.Name(), err)
	}
	defer h.Close()
	return f(h)
}
