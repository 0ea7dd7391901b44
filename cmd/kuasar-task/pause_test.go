package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newPause is a container whose first process is pause.
func (n *node) newPause() *box {
	n.Helper()
	b := n.newBox("/kuasar-task", "pause")
	path, err := binary()
	if err != nil {
		n.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.bundle, "rootfs", "kuasar-task"), nil, 0o755); err != nil {
		n.Fatal(err)
	}
	b.spec.Mounts = append(b.spec.Mounts, mountOf(path, "/kuasar-task"))
	return b
}

func TestFirstProcessOfSharedNamespace(t *testing.T) {
	n := newNode(t)
	b := n.newPause().run()
	pid := int(b.state("").Pid)

	// An orphan becomes its child, and no zombie.
	b.exec("e", nil, "sh", "-c", "(sleep 0.01 &)")
	b.startExec("e")
	b.wait("e")
	eventually(t, "the orphan is reaped", func() bool {
		children, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/task/" + strconv.Itoa(pid) + "/children")
		return err == nil && len(children) == 0
	})
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil || !strings.Contains(string(status), "Threads:\t1\n") {
		t.Errorf("Go runs in it: %s, %v", status, err)
	}
	b.kill(uint32(unix.SIGTERM))
	if got := b.wait(""); got != 0 {
		t.Errorf("exit status %d", got)
	}
}

// eventually waits for what no event tells of.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick, timeout := time.NewTicker(10*time.Millisecond), time.After(deadline)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("never: %s", what)
		}
	}
}

func TestTermination(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sleep", "1000").run()
	pid := int(b.state("").Pid)
	if err := n.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := n.cmd.Wait(); err != nil {
		t.Errorf("worker: %v", err)
	}
	if err := unix.Kill(pid, 0); err != nil {
		t.Errorf("container: %v", err)
	}
	n.client.Close()
	n.link.Close()
	n.start()
	n.connect()
	b.kill(9)
	if e := b.awaitExit(""); e.Exit.Status != 137 || e.Exit.Unknown != "" {
		t.Errorf("exit %v", e)
	}
}
