// Package e2e runs pods as kubelet and people do, through the CRI API,
// crictl and ctr, and holds that every handler does the same.
package e2e

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
	"github.com/containerd-kuasar/containerd-kuasar/test/images"
)

func TestMain(m *testing.M) { bed.Main(m) }

// deadline bounds each test with each handler.
var deadline = bed.Patience(time.Minute)

// emulated is how much longer it may take in a virtual machine that is, and has
// a machine's boot beside.
const emulated = 4

// handlers are what every test runs with, unless it is about one. The stock
// one shows that the test itself is right. KUASAR_HANDLERS has others.
func handlers() []string {
	if names := os.Getenv("KUASAR_HANDLERS"); names != "" {
		return strings.Split(names, ",")
	}
	return []string{bed.Stock, bed.Runc, bed.VMM}
}

// fixture is a bed with a handler and the test that it is for: its calls end the
// test on errors.
type fixture struct {
	*bed.Bed
	t       testing.TB
	ctx     context.Context
	handler string
}

// each runs a test on one daemon with each handler, one after the other.
func each(t *testing.T, test func(t *testing.T, n *fixture)) {
	t.Helper()
	b := newBed(t, bed.Options{})
	for _, handler := range handlers() {
		t.Run(handler, func(t *testing.T) {
			if handler == bed.VMM {
				bed.RequireVMM(t)
			}
			test(t, on(t, b, handler))
		})
	}
}

// newBed is a bed that has the images.
func newBed(t testing.TB, options bed.Options) *bed.Bed {
	t.Helper()
	b := bed.Test(t, options)
	for _, image := range []string{images.Busybox, images.Web} {
		if err := b.Pull(t.Context(), image); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// on makes a fixture of a bed for one test.
func on(t testing.TB, b *bed.Bed, handler string) *fixture {
	limit := deadline
	if handler == bed.VMM || handler == bed.VMMBlock || handler == bed.VMMClone {
		limit *= emulated
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return &fixture{b, t, ctx, handler}
}

func (n *fixture) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

// pod runs a pod that is removed when the test ends.
func (n *fixture) pod(change func(*runtime.PodSandboxConfig)) *bed.Pod {
	n.t.Helper()
	p, err := n.RunPod(n.ctx, n.handler, change)
	n.must(err)
	n.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		if err := p.Remove(ctx); err != nil {
			n.t.Error(err)
		}
	})
	return p
}

// run runs a container of a pod.
func (n *fixture) run(p *bed.Pod, change func(*runtime.ContainerConfig)) *bed.Container {
	n.t.Helper()
	c, err := p.Run(n.ctx, change)
	n.must(err)
	return c
}

// exec runs a script that must succeed and returns its output without the
// spaces around it.
func (n *fixture) exec(c *bed.Container, script string) string {
	n.t.Helper()
	r, err := c.Exec(n.ctx, script)
	n.must(err)
	if r.ExitCode != 0 || len(r.Stderr) > 0 {
		n.t.Fatalf("exec %q: exit code %d: %s", script, r.ExitCode, r.Stderr)
	}
	return strings.TrimSpace(string(r.Stdout))
}

// exit waits for a container's end.
func (n *fixture) exit(c *bed.Container) *runtime.ContainerStatus {
	n.t.Helper()
	status, err := c.AwaitExit(n.ctx)
	n.must(err)
	return status
}

// crictl runs crictl and returns what it prints.
func (n *fixture) crictl(args ...string) string {
	n.t.Helper()
	out, err := bed.Output(n.Crictl(n.ctx, args...))
	n.must(err)
	return out
}

// ctr runs ctr and returns what it prints.
func (n *fixture) ctr(args ...string) string {
	n.t.Helper()
	out, err := bed.Output(n.Ctr(n.ctx, args...))
	n.must(err)
	return out
}

// equal fails the test if got is not want.
func equal[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// contains fails the test if a text has not all parts.
func contains(t testing.TB, what, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%s: %q is not in %q", what, part, text)
		}
	}
}
