package e2e

import (
	"os"
	"testing"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
	"github.com/containerd-kuasar/containerd-kuasar/test/images"
)

// TestSwap replaces a stock containerd by ours below running pods, and ours
// by the stock one again.
func TestSwap(t *testing.T) {
	root := "../../"
	for _, test := range []struct{ name, from, to string }{
		{"to ours", "build/containerd", "bin/containerd-kuasar"},
		{"from ours", "bin/containerd-kuasar", "build/containerd"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := os.Stat(root + "build/containerd"); err != nil {
				t.Skip("needs build/containerd (make bed)")
			}
			b, err := bed.New(bed.Options{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := b.Close(); err != nil {
					t.Error(err)
				}
			})
			n := on(t, b, bed.Stock)
			n.must(b.StartBinary(n.ctx, b.Path(test.from)))
			n.must(b.Pull(n.ctx, images.Busybox))
			n.must(b.Pull(n.ctx, images.Pause))
			swap(n, b.Path(test.to))
		})
	}
}

func swap(n *fixture, binary string) {
	t := n.t
	p := n.pod(nil)
	c := n.run(p, bed.Script("echo before; trap 'echo term; exit 6' TERM; while :; do sleep 0.1; done"))
	short := n.run(p, bed.Script("exit 3"))
	n.exit(short)
	n.must(c.AwaitLog(n.ctx, "before"))
	before, err := c.Status(n.ctx)
	n.must(err)

	n.must(n.Stop(n.ctx))
	n.must(n.StartBinary(n.ctx, binary))

	after, err := c.Status(n.ctx)
	n.must(err)
	equal(t, "state", after.State, before.State)
	equal(t, "creation time", after.CreatedAt, before.CreatedAt)
	equal(t, "start time", after.StartedAt, before.StartedAt)
	equal(t, "exec", n.exec(c, "echo ok"), "ok")
	contains(t, "stats", n.crictl("stats", "--id", c.ID), c.ID[:13])
	n.run(p, nil) // one more in the old pod
	n.run(n.pod(nil), nil)
	status, err := short.Status(n.ctx)
	n.must(err)
	equal(t, "exit code of a container that ended before", status.ExitCode, 3)
	n.must(c.Stop(n.ctx, 10))
	status, err = c.Status(n.ctx)
	n.must(err)
	equal(t, "exit code", status.ExitCode, 6)
	log, err := c.Log("stdout")
	n.must(err)
	equal(t, "log", log, "before\nterm\n")
}
