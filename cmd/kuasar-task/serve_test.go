package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

func TestLife(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sh", "-c", "echo hello; exit 3")
	pid := b.create()
	if s := b.state(""); s.Status != tasktypes.Status_CREATED || s.Pid != pid || s.Bundle != b.bundle || s.Stdout != b.out.path {
		t.Errorf("created: %v", s)
	}
	b.start()
	if got := b.wait(""); got != 3 {
		t.Errorf("exit status %d", got)
	}
	if got := b.out.String(); got != "hello\n" {
		t.Errorf("output %q", got)
	}
	if s := b.state(""); s.Status != tasktypes.Status_STOPPED || s.ExitStatus != 3 {
		t.Errorf("stopped: %v", s)
	}
	if e := b.awaitExit(""); e.Pid != pid || e.Exit.Status != 3 || e.Exit.Unknown != "" {
		t.Errorf("event: %v", e)
	}
	if d := b.delete(""); d.ExitStatus != 3 || d.Pid != pid {
		t.Errorf("deleted: %v", d)
	}
	ctx, cancel := n.ctx()
	defer cancel()
	if _, err := n.client.State(ctx, &taskapi.StateRequest{ID: b.id}); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		t.Errorf("state of a deleted container: %v", err)
	}
	if left := b.leftovers(); left != "" {
		t.Errorf("left: %s", left)
	}
}

func TestVersion(t *testing.T) {
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, "--version").Output()
	if err != nil || string(out) != "kuasar-task 1.2.3-test\n" {
		t.Errorf("%q, %v", out, err)
	}
	out, err = exec.Command(path, "failpoints").Output()
	if err != nil || !strings.Contains(string(out), "server/create/runtime\n") {
		t.Errorf("%q, %v", out, err)
	}
	if out, err := exec.Command(path, "nonsense").CombinedOutput(); err == nil || !strings.Contains(string(out), "nonsense") {
		t.Errorf("%q, %v", out, err)
	}
}

func TestSecondWorkerIsRefused(t *testing.T) {
	n := newNode(t)
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, "serve", "--dir", n.dir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another worker serves it") {
		t.Errorf("%q, %v", out, err)
	}
	long := filepath.Join(n.dir, strings.Repeat("x", 100))
	out, err = exec.Command(path, "serve", "--dir", long).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "use a shorter state directory") {
		t.Errorf("%q, %v", out, err)
	}
}

func TestExec(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sleep", "1000").run()
	out := b.exec("one", nil, "sh", "-c", "echo in; exit 7")
	if s := b.state("one"); s.Status != tasktypes.Status_CREATED || s.Pid != 0 || s.ExecID != "one" {
		t.Errorf("added: %v", s)
	}
	pid := b.startExec("one")
	if got := b.wait("one"); got != 7 {
		t.Errorf("exit status %d", got)
	}
	if got := out.String(); got != "in\n" {
		t.Errorf("output %q", got)
	}
	if e := b.awaitExit("one"); e.Pid != pid || e.Exit.Status != 7 {
		t.Errorf("event: %v", e)
	}
	if d := b.delete("one"); d.ExitStatus != 7 {
		t.Errorf("deleted: %v", d)
	}
	b.kill(9)
	if got := b.wait(""); got != 137 {
		t.Errorf("exit status %d", got)
	}
	b.delete("")
}

func TestInfo(t *testing.T) {
	n := newNode(t)
	ctx, cancel := n.ctx()
	defer cancel()
	info, err := n.client.Info(ctx, &api.InfoRequest{})
	if err != nil || info.Version != "1.2.3-test" || info.Pid != uint32(n.cmd.Process.Pid) {
		t.Errorf("%v, %v", info, err)
	}
	exe, err := os.Readlink("/proc/" + itoa(n.cmd.Process.Pid) + "/exe")
	if err != nil || !strings.HasPrefix(exe, "/memfd:") {
		t.Errorf("worker runs from %s, %v", exe, err)
	}
}

func itoa(n int) string { return strconv.Itoa(n) }
