package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestExecSync(t *testing.T) {
	each(t, func(t *testing.T, n *fixture) {
		c := n.run(n.pod(nil), nil)
		for _, test := range []struct {
			name, script   string
			code           int32
			stdout, stderr string
		}{
			{"streams", "echo out; echo err >&2", 0, "out\n", "err\n"},
			{"exit code", "exit 7", 7, "", ""},
			{"signal", "kill -KILL $$", 137, "", ""},
			{"no output", "true", 0, "", ""},
			{"without newline", "printf abc", 0, "abc", ""},
			{"a megabyte", "dd if=/dev/zero bs=1024 count=1024 2>/dev/null | tr '\\0' x", 0, strings.Repeat("x", 1<<20), ""},
			{"reopened stdout", "echo again > /dev/stdout", 0, "again\n", ""},
			{"environment", "echo $PATH", 0, "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n", ""},
		} {
			t.Run(test.name, func(t *testing.T) {
				r, err := c.Exec(n.ctx, test.script)
				if err != nil {
					t.Fatal(err)
				}
				equal(t, "exit code", r.ExitCode, test.code)
				if string(r.Stdout) != test.stdout {
					t.Errorf("stdout: %d bytes %.60q, want %d bytes %.60q", len(r.Stdout), r.Stdout, len(test.stdout), test.stdout)
				}
				equal(t, "stderr", string(r.Stderr), test.stderr)
			})
		}
		t.Run("missing program", func(t *testing.T) {
			_, err := n.Runtime.ExecSync(n.ctx, &runtime.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"/no/such/program"}})
			if err == nil {
				t.Fatal("no error")
			}
			contains(t, "error", err.Error(), "/no/such/program")
		})
		t.Run("timeout", func(t *testing.T) {
			_, err := n.Runtime.ExecSync(n.ctx, &runtime.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"sleep", "4321"}, Timeout: 1})
			if err == nil {
				t.Fatal("no error")
			}
			contains(t, "error", err.Error(), "timeout")
			equal(t, "processes left", n.exec(c, "pgrep sleep | wc -l"), "1") // the container's own
		})
	})
}

func TestExecStdin(t *testing.T) {
	each(t, func(t *testing.T, n *fixture) {
		c := n.run(n.pod(nil), nil)
		cmd := n.Crictl(n.ctx, "exec", "-i", c.ID, "wc", "-c")
		cmd.Stdin = bytes.NewReader(make([]byte, 1<<20))
		out, err := cmd.Output()
		n.must(err)
		equal(t, "bytes that arrived", strings.TrimSpace(string(out)), fmt.Sprint(1<<20))
	})
}

func TestExecTerminal(t *testing.T) {
	each(t, func(t *testing.T, n *fixture) {
		c := n.run(n.pod(nil), nil)
		master, slave, err := console.NewPty()
		n.must(err)
		defer master.Close()
		n.must(master.Resize(console.WinSize{Width: 132, Height: 43}))
		// The size comes by another way than the line: stty fails before it is there.
		cmd := n.Crictl(n.ctx, "exec", "-it", c.ID, "sh", "-c", "read line; tty; until stty size 2>/dev/null; do sleep 0.1; done; echo got $line; exit 3")
		terminal := openTerminal(t, slave)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
		n.must(cmd.Start())
		terminal.Close()
		_, err = master.Write([]byte("hello\r"))
		n.must(err)
		out := readTerminal(master)
		err = cmd.Wait()
		if err == nil {
			t.Error("crictl succeeds, want the exit code 3 of the command")
		}
		contains(t, "output", out, "/dev/pts/0", "43 132", "got hello", "exit code 3")
	})
}

// streamSize is more than all buffers on the way hold together.
const streamSize = 64 << 20

// TestExecStream sends much, and takes back the same.
func TestExecStream(t *testing.T) {
	each(t, func(t *testing.T, n *fixture) {
		c := n.run(n.pod(nil), nil)
		cmd := n.Crictl(n.ctx, "exec", "-i", c.ID, "cat")
		sent, got := sha256.New(), sha256.New()
		cmd.Stdin = io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), streamSize), sent)
		cmd.Stdout = got
		n.must(cmd.Run())
		equal(t, "checksum of what came back", fmt.Sprintf("%x", got.Sum(nil)), fmt.Sprintf("%x", sent.Sum(nil)))
	})
}

// TestResizeTerminal changes the size of a terminal in use.
func TestResizeTerminal(t *testing.T) {
	each(t, func(t *testing.T, n *fixture) {
		c := n.run(n.pod(nil), nil)
		master, slave, err := console.NewPty()
		n.must(err)
		defer master.Close()
		n.must(master.Resize(console.WinSize{Width: 80, Height: 24}))
		cmd := n.Crictl(n.ctx, "exec", "-it", c.ID, "sh", "-c", `trap 'echo resized' WINCH; echo ready; until [ "$(stty size)" = "50 100" ]; do sleep 0.1; done; sleep 0.1; stty size`)
		terminal := openTerminal(t, slave)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
		n.must(cmd.Start())
		terminal.Close()
		out := bufio.NewReader(master)
		for line := ""; !strings.Contains(line, "ready"); {
			if line, err = out.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		n.must(master.Resize(console.WinSize{Width: 100, Height: 50}))
		n.must(cmd.Process.Signal(unix.SIGWINCH))
		contains(t, "output", readTerminal(out), "resized", "50 100")
		n.must(cmd.Wait())
	})
}
