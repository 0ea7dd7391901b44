package e2e

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

func TestLogs(t *testing.T) {
	each(t, func(t *testing.T, n *fixture) {
		p := n.pod(nil)
		for _, test := range []struct {
			name, script   string
			code           int32
			stdout, stderr string
		}{
			{"streams", "echo out; echo err >&2", 0, "out\n", "err\n"},
			{"no newline at the end", "printf abc", 0, "abc\n", ""},
			{"exit code", "echo before; exit 5", 5, "before\n", ""},
			{"long line", "dd if=/dev/zero bs=1000 count=100 2>/dev/null | tr '\\0' x; echo", 0, strings.Repeat("x", 100000) + "\n", ""},
			{"many lines", "seq 1 100000", 0, sequence(1, 100000), ""},
			{"reopened by a user", "echo again > /dev/stdout; echo err > /dev/stderr", 0, "again\n", "err\n"},
		} {
			t.Run(test.name, func(t *testing.T) {
				n := on(t, n.Bed, n.handler)
				c := n.run(p, func(c *runtime.ContainerConfig) {
					bed.Script(test.script)(c)
					if strings.HasSuffix(test.name, "user") {
						c.Linux.SecurityContext.RunAsUser = &runtime.Int64Value{Value: 1000}
					}
				})
				equal(t, "exit code", n.exit(c).ExitCode, test.code)
				for stream, want := range map[string]string{"stdout": test.stdout, "stderr": test.stderr} {
					got, err := c.Log(stream)
					n.must(err)
					// CRI ends a log with a newline only where the container does.
					if strings.TrimSuffix(got, "\n") != strings.TrimSuffix(want, "\n") {
						t.Errorf("%s: %d bytes %.80q, want %d bytes %.80q", stream, len(got), got, len(want), want)
					}
				}
			})
		}
	})
}

func sequence(from, to int) string {
	var all strings.Builder
	for i := from; i <= to; i++ {
		fmt.Fprintln(&all, i)
	}
	return all.String()
}

// TestRotation moves the log away several times while a container writes, and
// finds every line once.
func TestRotation(t *testing.T) {
	const lines, rotations = 200000, 5
	each(t, func(t *testing.T, n *fixture) {
		c := n.run(n.pod(nil), bed.Script(fmt.Sprintf("seq 1 %d", lines)))
		var all strings.Builder
		for i := range rotations {
			n.must(c.AwaitLog(n.ctx, "\n")) // so that each file has some
			to := fmt.Sprintf("%s.%d", c.LogPath(), i)
			if status, err := c.Status(n.ctx); err != nil || status.State != runtime.ContainerState_CONTAINER_RUNNING {
				break // a fast machine
			}
			rotate(n, c, to)
			defer func() { _ = os.Remove(to) }()
		}
		equal(t, "exit code", n.exit(c).ExitCode, 0)
		for i := range rotations {
			if raw, err := os.ReadFile(fmt.Sprintf("%s.%d", c.LogPath(), i)); err == nil {
				all.Write(raw)
			}
		}
		raw, err := os.ReadFile(c.LogPath())
		n.must(err)
		all.Write(raw)
		got, err := bed.ParseLog(all.String(), "stdout")
		n.must(err)
		if want := sequence(1, lines); got != want {
			t.Errorf("%d bytes, want %d: lines are lost, torn or doubled", len(got), len(want))
		}
	})
}

// TestAttach writes to a container's stdin and reads what it answers.
func TestAttach(t *testing.T) {
	each(t, func(t *testing.T, n *fixture) {
		c := n.run(n.pod(nil), func(c *runtime.ContainerConfig) {
			bed.Script("while read line; do echo got $line; done; echo end")(c)
			c.Stdin, c.StdinOnce = true, true
		})
		cmd := n.Crictl(n.ctx, "attach", "-i", c.ID)
		cmd.Stdin = strings.NewReader("one\ntwo\n")
		var out bytes.Buffer
		cmd.Stdout = &out
		n.must(cmd.Run())
		equal(t, "exit code", n.exit(c).ExitCode, 0)
		log, err := c.Log("stdout")
		n.must(err)
		equal(t, "log", log, "got one\ngot two\nend\n")
		contains(t, "attach", out.String(), "got one\n")
	})
}

// TestTerminal runs a container with a terminal.
func TestTerminal(t *testing.T) {
	each(t, func(t *testing.T, n *fixture) {
		c := n.run(n.pod(nil), func(c *runtime.ContainerConfig) {
			bed.Script("tty; test -t 0 && test -t 1 && test -t 2 && echo all; echo err >&2")(c)
			c.Tty, c.Stdin = true, true
		})
		equal(t, "exit code", n.exit(c).ExitCode, 0)
		log, err := c.Log("stdout")
		n.must(err)
		equal(t, "log", strings.ReplaceAll(log, "\r", ""), "/dev/pts/0\nall\nerr\n")
	})
}

// rotate moves a log away and makes CRI open a new one.
func rotate(n *fixture, c *bed.Container, to string) {
	n.t.Helper()
	n.must(os.Rename(c.LogPath(), to))
	_, err := n.Runtime.ReopenContainerLog(n.ctx, &runtime.ReopenContainerLogRequest{ContainerId: c.ID})
	n.must(err)
}
