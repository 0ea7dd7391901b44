package vmm_test

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/vmm"
	"github.com/containerd-kuasar/containerd-kuasar/vmm/vmmtest"
)

// witness keeps what a driver was told.
type witness struct {
	vmm.Driver
	nics []vmm.NIC
}

func (w *witness) Start(ctx context.Context, c vmm.Config) (vmm.VM, error) {
	w.nics = c.NICs
	return w.Driver.Start(ctx, c)
}

// podNamespace pins a network namespace with one interface that is up.
func podNamespace(t *testing.T) (path string) {
	t.Helper()
	root(t)
	path = filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1400}, PeerName: "host"}
			if err := netlink.LinkAdd(veth); err != nil {
				return err
			}
			if err := netlink.LinkSetUp(veth); err != nil {
				return err
			}
			return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return path
}

func TestPodHasItsInterfaces(t *testing.T) {
	path := podNamespace(t)
	w := &witness{Driver: vmmtest.Fake{}}
	dir := t.TempDir()
	s, err := backend(t, w).Create(t.Context(), sandbox.Spec{
		ID: "nic", Dir: dir, NetNS: path, Saved: func(context.Context) error { return nil },
		Config: &cri.PodSandboxConfig{Linux: &cri.LinuxPodSandboxConfig{CgroupParent: vmmtest.Group}},
	})
	if err != nil {
		t.Fatal(err)
	}
	end := func() {
		if err := s.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		if err := s.Delete(context.Background()); err != nil {
			t.Error(err)
		}
	}
	defer end()
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(w.nics) != 1 || w.nics[0].MTU != 1400 || len(w.nics[0].MAC) != 6 {
		t.Fatalf("the machine has %+v", w.nics)
	}
	if err := w.nics[0].Tap.Close(); err == nil {
		t.Error("this process still has the tap")
	}
	if n := redirections(t, path); n != 1 {
		t.Errorf("%d filters at the interface of a running pod", n)
	}
	end()
	if n := redirections(t, path); n != 0 {
		t.Errorf("%d filters at the interface of a pod that ended", n)
	}
}

// redirections counts the filters at the pod's interface.
func redirections(t *testing.T, path string) int {
	t.Helper()
	ns, err := netns.GetFromPath(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	l, err := h.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	found, err := h.FilterList(l, netlink.HANDLE_MIN_INGRESS)
	if err != nil && err != unix.EINVAL && err != unix.ENOENT { // there is no clsact
		t.Fatal(err)
	}
	return len(found)
}
