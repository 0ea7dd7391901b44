package runc

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/pkg/sys"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const mapped = 65536

func user(root uint32) *runtime.UserNamespace {
	m := []*runtime.IDMapping{{HostId: root, Length: mapped}}
	return &runtime.UserNamespace{Mode: runtime.NamespaceMode_POD, Uids: m, Gids: m}
}

// userNetNS makes a network namespace inside a user namespace, as CRI does.
func (n *node) userNetNS(root uint32) string {
	n.Helper()
	path := filepath.Join(n.dir, "usernet")
	must(n, os.WriteFile(path, nil, 0o444))
	m := fmt.Sprintf("0:%d:%d", root, mapped)
	must(n, sys.UnshareAfterEnterUserns(m, m, syscall.CLONE_NEWNET, func(pid int) error {
		return unix.Mount(fmt.Sprintf("/proc/%d/ns/net", pid), path, "", unix.MS_BIND, "")
	}))
	n.Cleanup(func() { must(n, unix.Unmount(path, unix.MNT_DETACH)) })
	return path
}

func TestUserNamespace(t *testing.T) {
	const root = 100000
	for _, test := range []struct {
		name string
		o    *runtime.NamespaceOption
	}{
		{"own network", &runtime.NamespaceOption{Pid: ownMode}},
		{"own network, shared processes", &runtime.NamespaceOption{}},
		{"the host's network", &runtime.NamespaceOption{Network: nodeMode, Pid: ownMode}},
		{"the host's network, shared processes", &runtime.NamespaceOption{Network: nodeMode}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNode(t)
			test.o.UsernsOptions = user(root)
			netns := ""
			if test.o.Network != nodeMode {
				netns = n.userNetNS(root)
			}
			b := n.start(config(test.o), netns)
			shared := test.o.Pid == podMode
			if has := b.Pid() != n.worker.Pids()[0]; has != shared {
				t.Errorf("the pod has an init: %t", has)
			}
			one, two := b.namespaces(), b.namespaces()
			for _, kind := range []string{"net", "ipc", "uts", "user"} {
				own := one[kind] != inode(t, "/proc/self/ns/"+kind)
				if want := netns != "" || kind == "ipc" || kind == "user"; own != want {
					t.Errorf("%s namespace of its own: %t", kind, own)
				}
				if one[kind] != two[kind] {
					t.Errorf("two containers have different %s namespaces", kind)
				}
			}
			script := "cat /proc/self/uid_map; id -u; echo 127.0.0.2 me >>/etc/hosts; mount -t mqueue m /dev; cat /proc/sys/kernel/shm_rmid_forced; hostname"
			c := command(b, shared, "sh", "-c", script)
			c.Spec.Process.Capabilities.Bounding = []string{"CAP_SYS_ADMIN"}
			c.Spec.Process.Capabilities.Effective = c.Spec.Process.Capabilities.Bounding
			c.Spec.Process.Capabilities.Permitted = c.Spec.Process.Capabilities.Bounding
			status, out := b.run("c", c).wait()
			name := "mypod"
			if netns == "" {
				name, _ = os.Hostname()
			}
			want := fmt.Sprintf("0 %d %d 0 1 %s", root, mapped, name)
			if got := strings.Join(strings.Fields(out), " "); status != 0 || got != want {
				t.Errorf("status %d: %q, want %q", status, got, want)
			}
		})
	}
}

func TestUserNamespaceSurvivesARestart(t *testing.T) {
	const root = 100000
	n := newNode(t)
	b := n.start(config(&runtime.NamespaceOption{Pid: ownMode, UsernsOptions: user(root)}), n.userNetNS(root))
	before := b.namespaces()
	must(t, n.worker.Close())
	n.boot()
	b.restore()
	if b.over() {
		t.Fatal("it is over")
	}
	if after := b.namespaces(); after["user"] != before["user"] || after["ipc"] != before["ipc"] {
		t.Errorf("namespaces %v, were %v", after, before)
	}
}
