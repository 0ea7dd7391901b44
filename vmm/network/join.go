package network

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
)

var (
	fpTap      = failpoint.New("network/join/tap")
	fpToPod    = failpoint.New("network/join/topod")
	fpToGuest  = failpoint.New("network/join/toguest")
	fpUnjoined = failpoint.New("network/part/filter")
)

// tapName is made of the interface's index: the namespace is the pod's alone.
// With at most 7 digits of base 36 it is below IFNAMSIZ (16).
func tapName(index int) string { return "kuasar" + strconv.FormatUint(uint64(uint32(index)), 36) }

// priority of our filters: the last, so that those of CNI plugins see the
// frames first.
const priority = 0xffff

// Join makes the tap beside an interface and returns it, a file per queue (at
// least one), for a VMM: with IFF_VNET_HDR. The tap is gone when the last one
// who has its files closes them. From here on the interface's frames are the
// guest's. A tap that a VMM still has is errdefs.ErrAlreadyExists. On error
// nothing is left.
func Join(netns string, i Interface, queues int) (taps []*os.File, err error) {
	err = inside(netns, func(h *netlink.Handle) error {
		taps, err = join(h, i, queues)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("join interface %s of %s to a tap: %w", i.Name, netns, err)
	}
	return taps, nil
}

func join(h *netlink.Handle, i Interface, queues int) (_ []*os.File, err error) {
	link, err := h.LinkByIndex(i.Index)
	if err != nil {
		return nil, missing(err)
	}
	if err := unused(h, tapName(i.Index)); err != nil {
		return nil, err
	}
	if err := part(h, link); err != nil { // what a crash left
		return nil, err
	}
	tap, err := newTap(h, i, queues)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, part(h, link))
			shut(tap.Fds)
		}
	}()
	fpTap.Hit()
	if err := redirect(h, tap, link); err != nil {
		return nil, err
	}
	fpToPod.Hit()
	if err := redirect(h, link, tap); err != nil {
		return nil, err
	}
	fpToGuest.Hit()
	return tap.Fds, nil
}

// unused is an error for a tap that somebody has.
func unused(h *netlink.Handle, tap string) error {
	switch _, err := h.LinkByName(tap); {
	case err == nil:
		return fmt.Errorf("%s is in use by another machine: %w", tap, errdefs.ErrAlreadyExists)
	case absent(err):
		return nil
	default:
		return fmt.Errorf("look for %s: %w", tap, err)
	}
}

// newTap makes a tap that is up and on which this host says nothing itself.
func newTap(h *netlink.Handle, i Interface, queues int) (_ *netlink.Tuntap, err error) {
	name := tapName(i.Index)
	tap := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TAP,
		Flags: unix.IFF_NO_PI | unix.IFF_VNET_HDR, NonPersist: true, Queues: max(queues, 1),
	}
	if queues > 1 {
		tap.Flags |= unix.IFF_MULTI_QUEUE
	}
	if err := h.LinkAdd(tap); err != nil {
		return nil, fmt.Errorf("make tap %s: %w: is there /dev/net/tun (kernel module tun)?", name, err)
	}
	defer func() {
		if err != nil {
			shut(tap.Fds)
		}
	}()
	made, err := h.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find tap %s: %w", name, err)
	}
	tap.Index = made.Attrs().Index
	if err := h.LinkSetMTU(tap, int(i.MTU)); err != nil {
		return nil, fmt.Errorf("set MTU %d of tap %s: %w", i.MTU, name, err)
	}
	// Without a link-local address there is nothing to announce to the guest.
	if err := h.LinkSetIP6AddrGenMode(tap, nl6None); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return nil, fmt.Errorf("keep IPv6 off tap %s: %w", name, err)
	}
	if err := h.LinkSetUp(tap); err != nil {
		return nil, fmt.Errorf("set tap %s up: %w", name, err)
	}
	return tap, nil
}

// nl6None is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const nl6None = 1

// redirect sends what arrives at one interface out of another. The classifier
// is u32 with a match of all: cls_matchall is not in every kernel.
func redirect(h *netlink.Handle, from, to netlink.Link) error {
	in, out := from.Attrs(), to.Attrs()
	q := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: in.Index, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0)}}
	if err := h.QdiscAdd(q); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact to %s: %w", in.Name, err)
	}
	f := filter(in.Index)
	f.RedirIndex = out.Index
	if err := h.FilterAdd(f); err != nil {
		return fmt.Errorf("redirect %s to %s: %w", in.Name, out.Name, err)
	}
	return nil
}

func filter(index int) *netlink.U32 {
	return &netlink.U32{FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Priority: priority, Protocol: unix.ETH_P_ALL}}
}

// Leave gives one interface back, as Part does all of them.
func Leave(netns string, i Interface) error {
	err := inside(netns, func(h *netlink.Handle) error {
		link, err := h.LinkByIndex(i.Index)
		if absent(err) {
			return nil
		}
		if err != nil {
			return err
		}
		return part(h, link)
	})
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("part interface %s of %s from its machine: %w", i.Name, netns, err)
	}
	return nil
}

// Part gives a pod's interfaces back to their namespace. The VMM is to be gone.
// Idempotent; of a namespace that is gone there is nothing to part.
func Part(netns string) error {
	err := inside(netns, func(h *netlink.Handle) error {
		all, err := dump(h.LinkList)
		if err != nil {
			return fmt.Errorf("list interfaces: %w", err)
		}
		var errs []error
		for _, l := range all {
			if l.Type() != "tuntap" { // ours are gone with the VMM
				errs = append(errs, part(h, l))
			}
		}
		return errors.Join(errs...)
	})
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("part network of %s from its machine: %w", netns, err)
	}
	return nil
}

// part removes our filter of an interface, and what nobody else uses there.
func part(h *netlink.Handle, link netlink.Link) error {
	a := link.Attrs()
	qdiscs, err := dump(func() ([]netlink.Qdisc, error) { return h.QdiscList(link) })
	if err != nil {
		return fmt.Errorf("list qdiscs of %s: %w", a.Name, err)
	}
	for _, q := range qdiscs {
		if q.Type() != "clsact" && q.Type() != "ingress" {
			continue
		}
		ours, others, err := filters(h, link)
		if err != nil {
			return err
		}
		if ours {
			if err := h.FilterDel(filter(a.Index)); err != nil && !gone(err) {
				return fmt.Errorf("remove redirection of %s: %w", a.Name, err)
			}
		}
		fpUnjoined.Hit()
		// A clsact without filters does nothing, whoever made it.
		if others || q.Type() == "ingress" {
			continue
		}
		if err := h.QdiscDel(q); err != nil && !gone(err) {
			return fmt.Errorf("remove clsact of %s: %w", a.Name, err)
		}
	}
	return nil
}

// filters says whose there are at an interface.
func filters(h *netlink.Handle, link netlink.Link) (ours, others bool, err error) {
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		found, err := dump(func() ([]netlink.Filter, error) { return h.FilterList(link, parent) })
		if err != nil && !gone(err) {
			return false, false, fmt.Errorf("list filters of %s: %w", link.Attrs().Name, err)
		}
		for _, f := range found {
			if parent == netlink.HANDLE_MIN_INGRESS && f.Attrs().Priority == priority && f.Type() == "u32" {
				ours = true
			} else {
				others = true
			}
		}
	}
	return ours, others, nil
}

// gone says that what was to be removed is not there.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL)
}

func absent(err error) bool {
	var e netlink.LinkNotFoundError
	return errors.As(err, &e)
}

func missing(err error) error {
	if absent(err) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	return err
}

func shut(taps []*os.File) {
	for _, f := range taps {
		f.Close()
	}
}
