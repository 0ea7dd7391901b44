package e2e

import (
	"strings"
	"testing"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
	"github.com/containerd-kuasar/containerd-kuasar/test/images"
)

// TestCtr looks at CRI's containers through containerd's own API.
func TestCtr(t *testing.T) {
	each(t, func(t *testing.T, n *fixture) {
		c := n.run(n.pod(nil), bed.Script("trap 'exit 9' TERM; while :; do sleep 0.1; done"))
		row := func() string {
			t.Helper()
			for line := range strings.Lines(n.ctr("tasks", "ls")) {
				if strings.HasPrefix(line, c.ID) {
					return line
				}
			}
			t.Errorf("ctr tasks ls has no %s", c.ID)
			return ""
		}
		contains(t, "tasks", row(), "RUNNING")
		equal(t, "exec", n.ctr("tasks", "exec", "--exec-id", "e1", c.ID, "echo", "from ctr"), "from ctr")
		if _, err := bed.Output(n.Ctr(n.ctx, "tasks", "exec", "--exec-id", "e2", c.ID, "sh", "-c", "exit 4")); err == nil {
			t.Error("ctr tasks exec succeeds, want the exit code 4 of the command")
		}
		contains(t, "ps", n.ctr("tasks", "ps", c.ID), "PID")
		contains(t, "metrics", n.ctr("tasks", "metrics", c.ID), c.ID, "memory")
		n.ctr("tasks", "pause", c.ID)
		contains(t, "tasks while paused", row(), "PAUSED")
		n.ctr("tasks", "resume", c.ID)
		contains(t, "tasks after resume", row(), "RUNNING")
		n.ctr("tasks", "kill", "--signal", "SIGTERM", c.ID)
		equal(t, "exit code", n.exit(c).ExitCode, 9)
	})
}

// TestCtrRun runs a container in a sandbox of CRI's that CRI knows nothing of.
func TestCtrRun(t *testing.T) {
	n := on(t, newBed(t, bed.Options{}), bed.Runc)
	p := n.pod(nil)
	c := n.run(p, nil)
	out := n.ctr("run", "--rm", "--sandbox", p.ID, images.Busybox, "from-ctr", "echo", "in the sandbox")
	equal(t, "output", out, "in the sandbox")
	n.ctr("run", "--detach", "--sandbox", p.ID, images.Busybox, "detached", "sleep", "100000")
	contains(t, "tasks", n.ctr("tasks", "ls"), "detached", c.ID)
	equal(t, "exec", n.ctr("tasks", "exec", "--exec-id", "e", "detached", "echo", "ok"), "ok")
	equal(t, "workers", helpers(t)["worker"], 1)
	equal(t, "shims", helpers(t)["shim"], 0)
	n.ctr("tasks", "kill", "--signal", "SIGKILL", "detached")
	n.ctr("tasks", "delete", "--force", "detached")
	n.ctr("containers", "delete", "detached")
}

// TestCtrStock runs a container without a sandbox: it gets the stock shim.
func TestCtrStock(t *testing.T) {
	n := on(t, newBed(t, bed.Options{}), bed.Stock)
	out := n.ctr("run", "--rm", "--runtime", "io.containerd.runc.v2", images.Busybox, "plain", "echo", "no sandbox")
	equal(t, "output", out, "no sandbox")
}
