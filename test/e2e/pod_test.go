package e2e

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
	"github.com/containerd-kuasar/containerd-kuasar/test/images"
)

// TestCrictl goes through a pod's life as a person does.
func TestCrictl(t *testing.T) { each(t, crictlLife) }

func crictlLife(t *testing.T, n *fixture) {
	config := n.PodConfig()
	podFile := writeJSON(t, "pod.json", config)
	pod := n.crictl("runp", "--runtime", n.handler, podFile)
	contains(t, "pods", n.crictl("pods", "--no-trunc", "--state", "ready"), pod, config.Metadata.Name, n.handler)
	contains(t, "inspectp", n.crictl("inspectp", pod), `"state": "SANDBOX_READY"`, `"runtimeHandler": "`+n.handler+`"`)

	containerFile := writeJSON(t, "container.json", &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: "hello"},
		Image:    &runtime.ImageSpec{Image: images.Busybox},
		Command:  []string{"sh", "-c", "echo hello; sleep 100000"},
		LogPath:  "hello.log",
	})
	container := n.crictl("create", pod, containerFile, podFile)
	contains(t, "ps", n.crictl("ps", "--no-trunc", "--state", "created"), container)
	equal(t, "start", n.crictl("start", container), container)
	contains(t, "ps", n.crictl("ps", "--no-trunc", "--state", "running"), container, "hello")
	equal(t, "exec", n.crictl("exec", container, "echo", "from exec"), "from exec")
	contains(t, "inspect", n.crictl("inspect", container), `"state": "CONTAINER_RUNNING"`)
	c := bed.Container{Pod: &bed.Pod{Config: config}, Config: &runtime.ContainerConfig{LogPath: "hello.log"}}
	n.must(c.AwaitLog(n.ctx, "hello"))
	equal(t, "logs", n.crictl("logs", container), "hello")
	contains(t, "stats", n.crictl("stats", "--id", container), "hello")
	contains(t, "statsp", n.crictl("statsp", "--id", pod), config.Metadata.Name)

	n.crictl("stop", "--timeout", "0", container)
	contains(t, "ps", n.crictl("ps", "--all", "--no-trunc", "--state", "exited"), container)
	n.crictl("rm", container)
	n.crictl("stopp", pod)
	contains(t, "pods", n.crictl("pods", "--no-trunc", "--state", "notready"), pod)
	n.crictl("rmp", pod)
	if pods := n.crictl("pods", "--quiet"); pods != "" {
		t.Errorf("pods left: %s", pods)
	}
}

func writeJSON(t testing.TB, name string, value any) string {
	t.Helper()
	raw, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestPod looks at what containers find of their pod.
func TestPod(t *testing.T) {
	each(t, func(t *testing.T, n *fixture) {
		p := n.pod(func(c *runtime.PodSandboxConfig) {
			c.Hostname = "host-of-pod"
			c.DnsConfig = &runtime.DNSConfig{Servers: []string{"192.0.2.53"}, Searches: []string{"example.org"}}
			c.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "1000", "kernel.msgmax": "16384"}
		})
		first, second := n.run(p, nil), n.run(p, nil)
		status, err := p.Status(n.ctx)
		n.must(err)
		if net.ParseIP(status.Network.Ip) == nil {
			t.Errorf("address %q", status.Network.Ip)
		}
		equal(t, "hostname", n.exec(first, "hostname"), "host-of-pod")
		equal(t, "/etc/hostname", n.exec(first, "cat /etc/hostname"), "host-of-pod")
		contains(t, "/etc/hosts", n.exec(first, "cat /etc/hosts"), "127.0.0.1")
		contains(t, "/etc/resolv.conf", n.exec(first, "cat /etc/resolv.conf"), "nameserver 192.0.2.53", "search example.org")
		equal(t, "network sysctl", n.exec(first, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "1000")
		equal(t, "ipc sysctl", n.exec(first, "cat /proc/sys/kernel/msgmax"), "16384")
		contains(t, "addresses", n.exec(first, "ip addr show eth0"), status.Network.Ip)

		n.exec(first, "echo shared > /dev/shm/file")
		equal(t, "/dev/shm of the other container", n.exec(second, "cat /dev/shm/file"), "shared")
		for _, namespace := range []string{"net", "ipc", "uts"} {
			link := "readlink /proc/self/ns/" + namespace
			equal(t, namespace+" namespace of the other container", n.exec(second, link), n.exec(first, link))
		}
		for _, namespace := range []string{"pid", "mnt"} {
			link := "readlink /proc/self/ns/" + namespace
			if n.exec(second, link) == n.exec(first, link) {
				t.Errorf("both containers have one %s namespace", namespace)
			}
		}
	})
}

func TestNamespaces(t *testing.T) {
	host := func(namespace string) string {
		link, err := os.Readlink("/proc/self/ns/" + namespace)
		if err != nil {
			t.Fatal(err)
		}
		return link
	}
	node, pod, container := runtime.NamespaceMode_NODE, runtime.NamespaceMode_POD, runtime.NamespaceMode_CONTAINER
	each(t, func(t *testing.T, n *fixture) {
		for _, test := range []struct {
			name              string
			network, pid, ipc runtime.NamespaceMode
			hosts             []string // namespaces that are the host's
			pidShared         bool
		}{
			{"pod", pod, container, pod, nil, false},
			{"shared pid", pod, pod, pod, nil, true},
			{"host network", node, container, pod, []string{"net", "uts"}, false},
			{"host pid", pod, node, pod, []string{"pid"}, true},
			{"host ipc", pod, container, node, []string{"ipc"}, false},
			{"host all", node, node, node, []string{"net", "uts", "pid", "ipc"}, true},
		} {
			machine := n.handler == bed.VMM
			if machine && len(test.hosts) > 0 {
				continue // see TestBadVM
			}
			t.Run(test.name, func(t *testing.T) {
				n := on(t, n.Bed, n.handler)
				p := n.pod(func(c *runtime.PodSandboxConfig) {
					c.Linux.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{Network: test.network, Pid: test.pid, Ipc: test.ipc}
					if test.network == node {
						c.Hostname = ""
					}
				})
				first, second := n.run(p, nil), n.run(p, nil)
				for _, namespace := range []string{"net", "uts", "pid", "ipc"} {
					got := n.exec(first, "readlink /proc/self/ns/"+namespace)
					want := strings.Contains(strings.Join(test.hosts, " "), namespace)
					// The first ones of every kernel have the same numbers.
					if !machine && (got == host(namespace)) != want {
						t.Errorf("%s namespace: it is the host's: %t", namespace, !want)
					}
				}
				link := "readlink /proc/self/ns/pid"
				equal(t, "shared pid namespace", n.exec(first, link) == n.exec(second, link), test.pidShared)
			})
		}
	})
}
