package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bed is a host and a pod, each a network namespace, with a veth between them
// as CNI makes it.
type bed struct {
	host, pod string // paths of namespaces
}

const (
	hostIP, podIP   = "10.9.0.1", "10.9.0.2"
	hostIP6, podIP6 = "fd00:9::1", "fd00:9::2"
	podMAC          = "02:00:00:00:09:02"
)

func newBed(t *testing.T) bed {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("no root: network namespaces cannot be made")
	}
	b := bed{host: newNamespace(t, "host"), pod: newNamespace(t, "pod")}
	b.addVeth(t, "eth0", podMAC, []string{hostIP + "/24", hostIP6 + "/64"}, []string{podIP + "/24", podIP6 + "/64"})
	return b
}

// newNamespace pins one until the test is over.
func newNamespace(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
			t.Error(err)
		}
	})
	in(t, path, func(h *netlink.Handle) error { return up(h, "lo") })
	return path
}

func in(t *testing.T, path string, f func(*netlink.Handle) error) {
	t.Helper()
	if err := inside(path, f); err != nil {
		t.Fatal(err)
	}
}

func up(h *netlink.Handle, name string) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	return h.LinkSetUp(l)
}

// addVeth makes one whose end in the pod has that name; its other end in the
// host is named after it.
func (b bed) addVeth(t *testing.T, name, mac string, host, pod []string) {
	t.Helper()
	hw, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	ns, err := os.Open(b.pod)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	in(t, b.host, func(h *netlink.Handle) error {
		return errors.Join(h.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "h" + name, MTU: 1400}, PeerMTU: 1400,
			PeerName: name, PeerHardwareAddr: hw, PeerNamespace: netlink.NsFd(int(ns.Fd())),
		}), bring(h, "h"+name, host))
	})
	in(t, b.pod, func(h *netlink.Handle) error { return bring(h, name, pod) })
}

// bring sets an interface up. It gets no address of its own later, which would
// make tests depend on when.
func bring(h *netlink.Handle, name string, addresses []string) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	return errors.Join(h.LinkSetIP6AddrGenMode(l, nl6None), assign(h, name, addresses), h.LinkSetUp(l))
}

func assign(h *netlink.Handle, name string, addresses []string) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	for _, s := range addresses {
		a, err := netlink.ParseAddr(s)
		if err != nil {
			return err
		}
		a.Flags = unix.IFA_F_NODAD
		if err := h.AddrAdd(l, a); err != nil {
			return err
		}
	}
	return nil
}

// scan returns the pod's interfaces and fails unless there are so many.
func (b bed) scan(t *testing.T, want int) []Interface {
	t.Helper()
	found, err := Scan(b.pod)
	if err != nil || len(found) != want {
		t.Fatalf("Scan: %+v, %v; want %d interfaces", found, err, want)
	}
	return found
}

// join returns the tap of an interface, closed when the test is over.
func (b bed) join(t *testing.T, i Interface) *os.File {
	t.Helper()
	taps, err := Join(b.pod, i, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shut(taps) })
	return taps[0]
}

// header is the size of a virtio_net_hdr without the count of buffers.
const header = 10

// guest stands for a machine with a network stack that answers ARP, and sends
// datagrams back. It ends with its tap, and tells how many it sent back.
func guest(tap io.ReadWriter, mac string, ip string) <-chan int {
	done := make(chan int, 1)
	hw, _ := net.ParseMAC(mac)
	own := net.ParseIP(ip).To4()
	go func() {
		echoed := 0
		defer func() { done <- echoed }()
		buffer := make([]byte, 1<<16)
		for {
			n, err := tap.Read(buffer)
			if err != nil {
				return
			}
			if n < header+14 {
				continue
			}
			answer, isEcho := reply(buffer[header:n], hw, own)
			if !answer {
				continue
			}
			clear(buffer[:header])
			if _, err := tap.Write(buffer[:n]); err != nil {
				return
			}
			if isEcho {
				echoed++
			}
		}
	}()
	return done
}

// reply turns a frame into its answer. What is swapped has the same checksums.
func reply(f []byte, mac net.HardwareAddr, ip net.IP) (answer, echo bool) {
	switch binary.BigEndian.Uint16(f[12:]) {
	case unix.ETH_P_ARP:
		p := f[14:]
		if len(p) < 28 || p[7] != 1 || !ip.Equal(net.IP(p[24:28])) {
			return false, false
		}
		p[7] = 2
		copy(p[18:28], p[8:18])
		copy(p[8:14], mac)
		copy(p[14:18], ip)
		copy(f[:6], p[18:24])
		copy(f[6:12], mac)
		return true, false
	case unix.ETH_P_IP:
		p := f[14:]
		if len(p) < 28 || p[9] != unix.IPPROTO_UDP || !ip.Equal(net.IP(p[16:20])) {
			return false, false
		}
		swap(f[:6], f[6:12])
		swap(p[12:16], p[16:20])
		swap(p[20:22], p[22:24])
		return true, true
	}
	return false, false
}

func swap(a, b []byte) {
	for i := range a {
		a[i], b[i] = b[i], a[i]
	}
}

// dump tells all there is in the pod's namespace, so that leaks are seen.
func (b bed) dump(t *testing.T) string {
	t.Helper()
	var s strings.Builder
	in(t, b.pod, func(h *netlink.Handle) error {
		links, err := h.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			a := l.Attrs()
			fmt.Fprintf(&s, "%d %s %s %s\n", a.Index, a.Name, a.HardwareAddr, l.Type())
			qdiscs, err := h.QdiscList(l)
			if err != nil {
				return err
			}
			for _, q := range qdiscs {
				fmt.Fprintf(&s, " %s\n", q.Type())
			}
			for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
				filters, _ := h.FilterList(l, parent) // an error where there is no clsact
				for _, f := range filters {
					fmt.Fprintf(&s, "  %s priority %d\n", f.Type(), f.Attrs().Priority)
				}
			}
			addresses, err := h.AddrList(l, netlink.FAMILY_ALL)
			if err != nil {
				return err
			}
			for _, a := range addresses {
				fmt.Fprintf(&s, "  %v\n", a.IPNet)
			}
		}
		routes, err := h.RouteList(nil, netlink.FAMILY_ALL)
		for _, r := range routes {
			fmt.Fprintf(&s, "%v\n", r)
		}
		return err
	})
	return s.String()
}
