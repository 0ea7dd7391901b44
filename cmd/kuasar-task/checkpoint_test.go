package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
)

func TestCheckpoint(t *testing.T) {
	if out, err := exec.Command("criu", "check").CombinedOutput(); err != nil {
		t.Skipf("missing: a criu that works on this kernel: %s", out)
	}
	n := newNode(t)
	const count = "i=0; while read x; do i=$((i+1)); echo $i $x; done; exit 71"
	b := n.newBox("sh", "-c", count)
	stdin, w := b.stdin("stdin")
	b.req.Stdin = stdin
	b.run()
	say(t, w, "a")
	b.out.await(t, "1 a\n")
	image := filepath.Join(n.dir, "image")
	b.checkpoint(image, &options.CheckpointOptions{})
	say(t, w, "b") // it runs on
	b.out.await(t, "1 a\n2 b\n")
	b.checkpoint(image, &options.CheckpointOptions{Exit: true})
	if got := b.wait(""); got != 137 {
		t.Errorf("exit status %d", got)
	}
	b.delete("")

	c := n.newBox("sh", "-c", count)
	stdin, w = c.stdin("stdin")
	c.req.Stdin, c.req.Checkpoint = stdin, image
	if pid := c.create(); pid != 0 {
		t.Errorf("made before its start: %d", pid)
	}
	c.start()
	say(t, w, "c")
	c.out.await(t, "3 c\n")
	w.Close()
	c.closeStdin("")
	if got := c.wait(""); got != 71 {
		t.Errorf("exit status %d", got)
	}
	c.delete("")
	if left := c.leftovers(); left != "" {
		t.Errorf("left: %s", left)
	}
}

func say(t *testing.T, w *os.File, line string) {
	t.Helper()
	if _, err := w.WriteString(line + "\n"); err != nil {
		t.Fatal(err)
	}
}

func (b *box) checkpoint(image string, opts *options.CheckpointOptions) {
	b.Helper()
	ctx, cancel := b.ctx()
	defer cancel()
	if _, err := b.client.Checkpoint(ctx, &taskapi.CheckpointTaskRequest{ID: b.id, Path: image, Options: anyOf(b, opts)}); err != nil {
		log, _ := os.ReadFile(filepath.Join(b.bundle, "criu-dump.log"))
		b.Fatalf("%v\n%s", err, log)
	}
}

func TestRestoreOfNothing(t *testing.T) {
	if out, err := exec.Command("criu", "check").CombinedOutput(); err != nil {
		t.Skipf("missing: a criu that works on this kernel: %s", out)
	}
	n := newNode(t)
	b := n.newBox("true")
	b.req.Checkpoint = filepath.Join(n.dir, "nothing")
	b.create()
	ctx, cancel := n.ctx()
	defer cancel()
	if _, err := n.client.Start(ctx, &taskapi.StartRequest{ID: b.id}); err == nil || !strings.Contains(err.Error(), "nothing") {
		t.Errorf("got %v", err)
	}
	b.delete("")
	if left := b.leftovers(); left != "" {
		t.Errorf("left: %s", left)
	}
}

func TestCheckpointWithoutCriu(t *testing.T) {
	n := newNode(t)
	n.kill()
	n.env = []string{"PATH=/nonexistent"}
	n.start()
	n.connect()
	b := n.newBox("sleep", "1000").run()
	ctx, cancel := n.ctx()
	defer cancel()
	_, err := n.client.Checkpoint(ctx, &taskapi.CheckpointTaskRequest{ID: b.id, Path: filepath.Join(n.dir, "image")})
	if err == nil || !strings.Contains(err.Error(), "criu is not installed") {
		t.Errorf("got %v", err)
	}
}
