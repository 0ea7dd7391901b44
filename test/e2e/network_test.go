package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
	"github.com/containerd-kuasar/containerd-kuasar/test/images"
)

// server runs a web server in a pod, once it serves, and returns its addresses.
func server(n *fixture) (c *bed.Container, addresses []string) {
	n.t.Helper()
	p := n.pod(nil)
	c = n.run(p, func(c *runtime.ContainerConfig) {
		c.Image = &runtime.ImageSpec{Image: images.Web}
		c.Command = nil
	})
	n.exec(c, serving)
	status, err := p.Status(n.ctx)
	n.must(err)
	addresses = []string{status.Network.Ip}
	for _, ip := range status.Network.AdditionalIps {
		addresses = append(addresses, ip.Ip)
	}
	if len(addresses) != 2 {
		n.t.Fatalf("addresses %v, want one of either kind", addresses)
	}
	return c, addresses
}

// TestNetwork reaches pods from this host and from pods of other handlers, and
// all of them from a pod.
func TestNetwork(t *testing.T) {
	each(t, func(t *testing.T, n *fixture) {
		c, addresses := server(n)
		other, others := server(on(t, n.Bed, bed.Runc))
		host, err := net.Listen("tcp", ":0")
		n.must(err)
		defer host.Close()
		from := make(chan string, 1)
		go func() {
			_ = http.Serve(host, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				address, _, _ := net.SplitHostPort(r.RemoteAddr)
				from <- address
				_, _ = io.WriteString(w, "host")
			}))
		}()
		gateways := []string{"10.88.0.1", "fd88::1"}
		for i, address := range addresses {
			contains(t, "addresses in the pod", n.exec(c, "ip addr show eth0"), " "+address+"/")
			contains(t, "from this host", get(t, n.ctx, "http://"+net.JoinHostPort(address, "80")+"/"), "Welcome")
			contains(t, "from another pod", fetch(n, other, address, 80), "Welcome")
			contains(t, "another pod", fetch(n, c, others[i], 80), "Welcome")
			equal(t, "this host", fetch(n, c, gateways[i], host.Addr().(*net.TCPAddr).Port), "host")
			equal(t, "who asked this host", <-from, address)
		}
		contains(t, "routes", n.exec(c, "ip route"), "default via 10.88.0.1 dev eth0")
		contains(t, "routes", n.exec(c, "ip -6 route"), "default via fd88::1 dev eth0")
		equal(t, "localhost", fetch(n, c, "127.0.0.1", 80), fetch(n, c, "::1", 80))
		if strings.Contains(n.exec(c, "ip addr"), "kuasar") {
			t.Error("the pod sees what is beside its interfaces")
		}
	})
}

// fetch gets a page from inside a container.
func fetch(n *fixture, c *bed.Container, address string, port int) string {
	n.t.Helper()
	return n.exec(c, fmt.Sprintf("wget -q -O - http://%s/", net.JoinHostPort(address, fmt.Sprint(port))))
}
