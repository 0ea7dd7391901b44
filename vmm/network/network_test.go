package network

import (
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func mustNet(s string) *net.IPNet {
	_, n, err := net.ParseCIDR(s)
	if err != nil {
		panic(err)
	}
	return n
}

// dress gives the pod's eth0 the routes and neighbours that CNI plugins do.
func dress(t *testing.T, b bed) {
	t.Helper()
	in(t, b.pod, func(h *netlink.Handle) error {
		l, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		i := l.Attrs().Index
		hw, _ := net.ParseMAC("02:00:00:00:09:01")
		return errors.Join(
			h.RouteAdd(&netlink.Route{LinkIndex: i, Gw: net.ParseIP(hostIP)}),
			h.RouteAdd(&netlink.Route{LinkIndex: i, Gw: net.ParseIP(hostIP6)}),
			h.RouteAdd(&netlink.Route{LinkIndex: i, Dst: mustNet("169.254.1.1/32"), Scope: netlink.SCOPE_LINK, MTU: 1300}),
			h.RouteAdd(&netlink.Route{LinkIndex: i, Dst: mustNet("10.8.0.0/16"), Gw: net.ParseIP("169.254.1.1"), Src: net.ParseIP(podIP), Priority: 7, Flags: int(netlink.FLAG_ONLINK)}),
			h.RouteAdd(&netlink.Route{LinkIndex: i, Dst: mustNet("10.7.0.0/16"), Via: &netlink.Via{AddrFamily: unix.AF_INET6, Addr: net.ParseIP(hostIP6)}}),
			h.NeighSet(&netlink.Neigh{LinkIndex: i, State: netlink.NUD_PERMANENT, IP: net.ParseIP(hostIP), HardwareAddr: hw}),
			h.NeighSet(&netlink.Neigh{LinkIndex: i, State: netlink.NUD_STALE, IP: net.ParseIP("10.9.0.9"), HardwareAddr: hw}),
		)
	})
}

func TestScan(t *testing.T) {
	b := newBed(t)
	dress(t, b)
	i := b.scan(t, 1)[0]
	if i.Name != "eth0" || i.MAC != podMAC || i.MTU != 1400 {
		t.Errorf("got %+v", i)
	}
	for _, want := range []string{podIP + "/24", podIP6 + "/64"} {
		if !slices.Contains(i.Addresses, Address{Prefix: netip.MustParsePrefix(want)}) {
			t.Errorf("address %s is not in %v", want, i.Addresses)
		}
	}
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	want := []Route{
		{Destination: prefix("169.254.1.1/32"), Scope: unix.RT_SCOPE_LINK, MTU: 1300},
		{Destination: prefix("10.7.0.0/16"), Gateway: addr(hostIP6)},
		{Destination: prefix("10.8.0.0/16"), Gateway: addr("169.254.1.1"), Source: addr(podIP), Metric: 7, Onlink: true},
		{Destination: prefix("0.0.0.0/0"), Gateway: addr(hostIP)},
		{Destination: prefix("::/0"), Gateway: addr(hostIP6), Metric: 1024},
	}
	if !reflect.DeepEqual(i.Routes, want) {
		t.Errorf("routes\n%+v, want\n%+v", i.Routes, want)
	}
	if want := []Neighbour{{addr(hostIP), "02:00:00:00:09:01"}}; !reflect.DeepEqual(i.Neighbours, want) {
		t.Errorf("neighbours %v, want %v", i.Neighbours, want)
	}
}

func TestScanSurvivesJSON(t *testing.T) {
	b := newBed(t)
	dress(t, b)
	want := b.scan(t, 1)
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got []Interface
	if err := json.Unmarshal(text, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

func TestScanRefuses(t *testing.T) {
	b := newBed(t)
	in(t, b.pod, func(h *netlink.Handle) error {
		l, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		hop := func(ip string) *netlink.NexthopInfo {
			return &netlink.NexthopInfo{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(ip)}
		}
		return h.RouteAdd(&netlink.Route{Dst: mustNet("10.6.0.0/16"), MultiPath: []*netlink.NexthopInfo{hop(hostIP), hop("10.9.0.3")}})
	})
	_, err := Scan(b.pod)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "10.6.0.0/16") {
		t.Errorf("got %v", err)
	}
}

func TestScanRefusesOneMACTwice(t *testing.T) {
	b := newBed(t)
	b.addVeth(t, "net1", podMAC, nil, nil)
	if _, err := Scan(b.pod); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "eth0 and net1") {
		t.Errorf("got %v", err)
	}
}

func TestEthernet(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	for _, c := range []struct {
		encap string
		mac   net.HardwareAddr
		want  bool
	}{{"ether", mac, true}, {"none", nil, false}, {"ipip", mac[:4], false}, {"ether", nil, false}} {
		err := ethernet(&netlink.LinkAttrs{EncapType: c.encap, HardwareAddr: c.mac})
		if (err == nil) != c.want || err != nil && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s %v: %v", c.encap, c.mac, err)
		}
	}
}

func TestNamespaceIsMissing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/no/such/netns", file} {
		if _, err := Scan(path); !errdefs.IsNotFound(err) {
			t.Errorf("Scan(%s): %v", path, err)
		}
		if err := Part(path); err != nil {
			t.Errorf("Part(%s): %v", path, err)
		}
	}
}

// exchange sends a datagram from the host to the pod and wants it back.
func (b bed) exchange(t *testing.T, ip string) {
	t.Helper()
	in(t, b.host, func(*netlink.Handle) error {
		c, err := net.Dial("udp", net.JoinHostPort(ip, "7"))
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		answer := make([]byte, 16)
		n, err := c.Read(answer)
		if err == nil && string(answer[:n]) != "hello" {
			err = errors.New("wrong answer: " + string(answer[:n]))
		}
		return err
	})
}

func TestJoin(t *testing.T) {
	b := newBed(t)
	b.addVeth(t, "net1", "02:00:00:00:0a:02", []string{"10.10.0.1/24"}, []string{"10.10.0.2/24"})
	found := b.scan(t, 2)
	before := b.dump(t)
	first, second := b.join(t, found[0]), b.join(t, found[1])
	one, two := guest(first, podMAC, podIP), guest(second, "02:00:00:00:0a:02", "10.10.0.2")
	b.exchange(t, podIP)
	b.exchange(t, "10.10.0.2")
	if again := b.scan(t, 2); !reflect.DeepEqual(again, found) {
		t.Errorf("it is read as %+v after joining, was %+v", again, found)
	}
	if err := Part(b.pod); err != nil {
		t.Fatal(err)
	}
	shut([]*os.File{first, second})
	if n, m := <-one, <-two; n != 1 || m != 1 {
		t.Errorf("guests answered %d and %d datagrams", n, m)
	}
	if after := b.dump(t); after != before {
		t.Errorf("left behind:\n%s\nwas\n%s", after, before)
	}
}

func TestTap(t *testing.T) {
	b := newBed(t)
	i := b.scan(t, 1)[0]
	taps, err := Join(b.pod, i, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer shut(taps)
	if len(taps) != 2 {
		t.Errorf("%d queues, want 2", len(taps))
	}
	in(t, b.pod, func(h *netlink.Handle) error {
		l, err := h.LinkByName(tapName(i.Index))
		if err != nil {
			return err
		}
		if l.Attrs().MTU != 1400 {
			t.Errorf("MTU of the tap is %d", l.Attrs().MTU)
		}
		addresses, err := h.AddrList(l, netlink.FAMILY_ALL)
		if len(addresses) > 0 {
			t.Errorf("the tap has %v", addresses)
		}
		return err
	})
	before := b.dump(t)
	if _, err := Join(b.pod, i, 1); !errdefs.IsAlreadyExists(err) {
		t.Errorf("joined again: %v", err)
	}
	if after := b.dump(t); after != before {
		t.Errorf("the machine that has the tap lost something: \n%s\nwas\n%s", after, before)
	}
}

func TestTapNames(t *testing.T) {
	seen := map[string]int{}
	for _, index := range []int{1, 2, 35, 36, 1<<31 - 1} {
		name := tapName(index)
		if len(name) >= unix.IFNAMSIZ || seen[name] != 0 {
			t.Errorf("tap of %d is named %q", index, name)
		}
		seen[name] = index
	}
}

// A daemon that dies closes its taps; what else it did is undone by Part, and
// by the next Join.
func TestJoinAfterCrash(t *testing.T) {
	b := newBed(t)
	i := b.scan(t, 1)[0]
	before := b.dump(t)
	shut([]*os.File{b.join(t, i)})
	tap := b.join(t, i)
	done := guest(tap, podMAC, podIP)
	b.exchange(t, podIP)
	tap.Close()
	<-done
	for range 2 {
		if err := Part(b.pod); err != nil {
			t.Fatal(err)
		}
		if after := b.dump(t); after != before {
			t.Errorf("left behind:\n%s\nwas\n%s", after, before)
		}
	}
}

// The guest's kernel makes the same link-local address of the same MAC.
func TestScanLeavesOutLinkLocal(t *testing.T) {
	b := newBed(t)
	in(t, b.pod, func(h *netlink.Handle) error {
		return assign(h, "eth0", []string{"fe80::ff:fe00:902/64", "fe80::5/64"})
	})
	var got []string
	for _, a := range b.scan(t, 1)[0].Addresses {
		got = append(got, a.Prefix.String())
	}
	slices.Sort(got)
	if want := []string{podIP + "/24", podIP6 + "/64", "fe80::5/64"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestOthersStay(t *testing.T) {
	b := newBed(t)
	i := b.scan(t, 1)[0]
	in(t, b.pod, func(h *netlink.Handle) error {
		q := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: i.Index, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0)}}
		f := filter(i.Index)
		f.Priority, f.Protocol, f.RedirIndex = 1, unix.ETH_P_AARP, 1
		return errors.Join(h.QdiscAdd(q), h.FilterAdd(f))
	})
	before := b.dump(t)
	if !strings.Contains(before, "priority 1") {
		t.Fatalf("the other's filter is missing: %s", before)
	}
	tap := b.join(t, i)
	done := guest(tap, podMAC, podIP)
	b.exchange(t, podIP)
	if err := Part(b.pod); err != nil {
		t.Fatal(err)
	}
	tap.Close()
	<-done
	if after := b.dump(t); after != before {
		t.Errorf("got\n%s\nwas\n%s", after, before)
	}
}

func TestJoinWhatIsGone(t *testing.T) {
	b := newBed(t)
	i := b.scan(t, 1)[0]
	in(t, b.pod, func(h *netlink.Handle) error {
		l, err := h.LinkByName("eth0")
		return errors.Join(err, h.LinkDel(l))
	})
	before := b.dump(t)
	if _, err := Join(b.pod, i, 1); !errdefs.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
	if after := b.dump(t); after != before {
		t.Errorf("left behind:\n%s", after)
	}
}

// Many pods at a time, each with its own namespace and files.
func TestPodsAtOnce(t *testing.T) {
	beds := make([]bed, 8)
	for n := range beds {
		beds[n] = newBed(t)
	}
	before := countFiles(t)
	var all sync.WaitGroup
	for _, b := range beds {
		all.Go(func() {
			found, err := Scan(b.pod)
			if err != nil {
				t.Error(err)
				return
			}
			taps, err := Join(b.pod, found[0], 1)
			if err == nil {
				shut(taps)
				err = Part(b.pod)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if after := countFiles(t); after != before {
		t.Errorf("%d open files, were %d", after, before)
	}
}

func countFiles(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}
