package console

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"

	"github.com/vishvananda/netlink"
)

// network shows what the pod's containers see: they have the guest's network.
func network(_ context.Context, _ []string, out io.Writer) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	names := map[int]string{}
	t := table(out)
	row(t, "INTERFACE", "STATE", "MTU", "MAC", "RX BYTES", "TX BYTES", "ADDRESSES")
	for _, l := range links {
		a := l.Attrs()
		names[a.Index] = a.Name
		addresses, err := addresses(l)
		if err != nil {
			return err
		}
		var rx, tx string
		if s := a.Statistics; s != nil {
			rx, tx = strconv.FormatUint(s.RxBytes, 10), strconv.FormatUint(s.TxBytes, 10)
		}
		row(t, a.Name, state(a), strconv.Itoa(a.MTU), a.HardwareAddr.String(), rx, tx, addresses)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if err := routes(out, names); err != nil {
		return err
	}
	return neighbours(out, names)
}

func state(a *netlink.LinkAttrs) string {
	if a.Flags&net.FlagUp != 0 {
		return "up"
	}
	return "down"
}

func addresses(l netlink.Link) (string, error) {
	list, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return "", fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
	}
	text := ""
	for i, a := range list {
		if i > 0 {
			text += " "
		}
		text += a.IPNet.String()
	}
	return text, nil
}

func routes(out io.Writer, names map[int]string) error {
	list, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	fmt.Fprintln(out)
	t := table(out)
	row(t, "ROUTE", "GATEWAY", "INTERFACE", "SOURCE", "METRIC")
	for _, r := range list {
		row(t, destination(r.Dst), address(r.Gw), names[r.LinkIndex], address(r.Src), strconv.Itoa(r.Priority))
	}
	return t.Flush()
}

func destination(n *net.IPNet) string {
	if n == nil {
		return "default"
	}
	if ones, _ := n.Mask.Size(); ones == 0 {
		return "default"
	}
	return n.String()
}

func neighbours(out io.Writer, names map[int]string) error {
	list, err := netlink.NeighList(0, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	fmt.Fprintln(out)
	t := table(out)
	row(t, "NEIGHBOUR", "MAC", "INTERFACE")
	for _, n := range list {
		if n.State&netlink.NUD_NOARP == 0 {
			row(t, address(n.IP), n.HardwareAddr.String(), names[n.LinkIndex])
		}
	}
	return t.Flush()
}

func address(a net.IP) string {
	if a == nil {
		return ""
	}
	return a.String()
}
