package network

import (
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// Interfaces come after the machine has started, and their routes still later.
func TestWatch(t *testing.T) {
	b := newBed(t)
	files := countFiles(t)
	changes := make(chan struct{}, 1)
	w, err := NewWatch(b.pod, func() {
		select {
		case changes <- struct{}{}:
		default:
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	until := func(what string, ok func([]Interface) bool) {
		t.Helper()
		deadline := time.After(10 * time.Second)
		for {
			select {
			case <-changes:
			case <-deadline:
				t.Fatalf("nobody told of %s", what)
			}
			found, err := Scan(b.pod)
			if err != nil {
				t.Fatal(err)
			}
			if ok(found) {
				return
			}
		}
	}
	b.addVeth(t, "net1", "02:00:00:00:0a:02", nil, []string{"10.10.0.2/24"})
	until("an interface", func(all []Interface) bool { return len(all) == 2 && len(all[1].Addresses) == 1 })
	in(t, b.pod, func(h *netlink.Handle) error {
		l, err := h.LinkByName("net1")
		if err != nil {
			return err
		}
		return h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: mustNet("10.11.0.0/16"), Gw: net.ParseIP("10.10.0.1")})
	})
	until("a route", func(all []Interface) bool { return len(all[1].Routes) == 1 })
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if after := countFiles(t); after != files {
		t.Errorf("%d open files, were %d", after, files)
	}
}
