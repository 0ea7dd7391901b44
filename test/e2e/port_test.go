package e2e

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net/http"
	"regexp"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/images"
)

// serving waits for the web server, which logs before it listens: it is asked
// from inside.
const serving = "until wget -q -O /dev/null http://127.0.0.1/ 2>/dev/null; do :; done"

// web runs the web server in a pod and returns when it serves.
func web(n *fixture) (pod string, address string) {
	n.t.Helper()
	p := n.pod(func(c *runtime.PodSandboxConfig) {
		c.PortMappings = []*runtime.PortMapping{{ContainerPort: 80, HostPort: 8080}}
	})
	c := n.run(p, func(c *runtime.ContainerConfig) {
		c.Image = &runtime.ImageSpec{Image: images.Web}
		c.Command = nil
	})
	n.exec(c, serving)
	status, err := p.Status(n.ctx)
	n.must(err)
	return p.ID, status.Network.Ip
}

func get(t testing.TB, ctx context.Context, url string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

var forwarding = regexp.MustCompile(`127\.0\.0\.1:\d+`)

// TestPorts reaches a pod by its address, by a host port and by port-forward.
func TestPorts(t *testing.T) {
	each(t, func(t *testing.T, n *fixture) {
		pod, address := web(n)
		contains(t, "page by address", get(t, n.ctx, "http://"+address+"/"), "Welcome")
		contains(t, "page by host port", get(t, n.ctx, "http://127.0.0.1:8080/"), "Welcome")

		local := forwarded(n, pod)
		contains(t, "page by port-forward", get(t, n.ctx, "http://"+local+"/"), "Welcome")

		large := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		request, err := http.NewRequestWithContext(n.ctx, http.MethodPost, "http://"+local+"/", bytes.NewReader(large))
		n.must(err)
		response, err := http.DefaultClient.Do(request)
		n.must(err)
		defer response.Body.Close()
		echo, err := io.ReadAll(response.Body)
		n.must(err)
		if !bytes.Equal(echo, large) {
			t.Errorf("a megabyte through port-forward: %d bytes come back", len(echo))
		}

		n.must(n.Kill())
		n.must(n.Bed.Start(n.ctx))
		contains(t, "page after a restart of the daemon", get(t, n.ctx, "http://"+forwarded(n, pod)+"/"), "Welcome")
	})
}

// forwarded forwards port 80 of a pod until the test ends, and returns the
// address it has here.
func forwarded(n *fixture, pod string) string {
	n.t.Helper()
	cmd := n.Crictl(n.ctx, "port-forward", pod, ":80")
	out, err := cmd.StdoutPipe()
	n.must(err)
	n.must(cmd.Start())
	n.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	n.must(err)
	local := forwarding.FindString(line)
	if local == "" {
		n.t.Fatalf("crictl port-forward prints %q", line)
	}
	return local
}
