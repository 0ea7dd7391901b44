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
	if err := exec.Command("criu", "check").Run(); err != nil {
		t.Skipf("missing: a criu that works here: criu check: %v", err)
	}
	n := newNode(t)
	b := n.newBox("sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); sleep 0.01; done").run()
	image := filepath.Join(n.dir, "image")
	ctx, cancel := n.ctx()
	defer cancel()
	if _, err := n.client.Checkpoint(ctx, &taskapi.CheckpointTaskRequest{ID: b.id, Path: image, Options: anyOf(b, &options.CheckpointOptions{Exit: true})}); err != nil {
		log, _ := os.ReadFile(filepath.Join(b.bundle, "criu-dump.log"))
		t.Fatalf("%v\n%s", err, log)
	}
	b.wait("")
	b.delete("")

	c := n.newBox("sh", "-c", "never run")
	c.req.Checkpoint = image
	c.create()
	c.start()
	if s := c.state(""); s.Pid == 0 {
		t.Errorf("restored: %v", s)
	}
	c.kill(9)
	if got := c.wait(""); got != 137 {
		t.Errorf("exit status %d", got)
	}
	c.delete("")
	if left := c.leftovers(); left != "" {
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
