package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/task"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/task/hold"
)

// deadline of everything that a test waits for.
const deadline = 20 * time.Second

// cgroupParent of all containers of these tests.
const cgroupParent = "/kuasar-task-test"

// agent is the environment variable that names a kuasar-task to test, where
// building one takes long.
const agent = "KUASAR_TEST_AGENT"

// binary is the static kuasar-task, built once.
var binary = sync.OnceValues(func() (string, error) {
	if path := os.Getenv(agent); path != "" {
		return path, nil
	}
	dir, err := os.MkdirTemp("", "kuasar-task-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "kuasar-task")
	cmd := exec.Command("go", "build", "-tags", "seccomp netgo osusergo",
		"-ldflags", `-s -w -X main.version=1.2.3-test -extldflags "-static"`, "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build kuasar-task: %w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := binary(); err == nil && path != os.Getenv(agent) {
		os.RemoveAll(filepath.Dir(path))
	}
	if dir, err := modules(); err == nil {
		os.RemoveAll(dir)
	}
	for _, pattern := range []string{"/sys/fs/cgroup" + cgroupParent, "/sys/fs/cgroup/*" + cgroupParent} {
		dirs, _ := filepath.Glob(pattern)
		for _, dir := range dirs {
			_ = os.Remove(dir)
		}
	}
	os.Exit(code)
}

// node is a directory of a worker, the worker, and the daemon's side of it.
type node struct {
	testing.TB
	dir    string
	env    []string
	keeper *hold.Keeper

	cmd    *exec.Cmd
	client *task.Client
	link   *hold.Link
	events *events
}

// newNode starts a worker with a daemon connected to it.
func newNode(t testing.TB) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("missing: root")
	}
	dir, err := os.MkdirTemp("", "kt") // short: sockets
	if err != nil {
		t.Fatal(err)
	}
	n := &node{TB: t, dir: dir, keeper: hold.NewKeeper()}
	t.Cleanup(func() {
		n.stop()
		n.keeper.Close()
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Logf("worker's log:\n%s", log)
		}
		os.RemoveAll(dir)
	})
	n.start()
	n.connect()
	return n
}

// start starts the worker and waits until it listens.
func (n *node) start() {
	n.Helper()
	path, err := binary()
	if err != nil {
		n.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(n.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.Fatal(err)
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		n.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command(path, "serve", "--dir", n.dir)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, []*os.File{w}
	cmd.Env = append(os.Environ(), n.env...)
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		n.Fatal(err)
	}
	w.Close()
	n.cmd = cmd
	if ok, err := io.ReadAll(r); err != nil || string(ok) != "ok\n" {
		n.Fatalf("worker said %q, %v", ok, err)
	}
}

func (n *node) connect() {
	n.Helper()
	ctx, cancel := n.ctx()
	defer cancel()
	conn, err := net.Dial("unix", filepath.Join(n.dir, "agent.sock"))
	if err != nil {
		n.Fatal(err)
	}
	if n.client, err = task.NewClient(ctx, conn); err != nil {
		n.Fatal(err)
	}
	if n.link, err = n.keeper.Connect(ctx, filepath.Join(n.dir, "hold.sock")); err != nil {
		n.Fatal(err)
	}
	n.events = n.subscribe()
}

// kill ends the worker as kill -9 does.
func (n *node) kill() {
	n.Helper()
	if err := n.cmd.Process.Kill(); err != nil {
		n.Fatal(err)
	}
	n.gone()
}

// gone waits for a worker that is about to die.
func (n *node) gone() {
	_ = n.cmd.Wait()
	n.client.Close()
	n.link.Close()
	n.cmd = nil
}

// restart kills the worker and starts the next one.
func (n *node) restart() {
	n.Helper()
	n.kill()
	n.start()
	n.connect()
}

// stop kills and deletes all containers, then the worker.
func (n *node) stop() {
	if n.cmd == nil {
		return
	}
	ctx, cancel := n.ctx()
	defer cancel()
	list, err := n.client.List(ctx, &api.ListRequest{})
	if err != nil {
		n.Errorf("list what is left: %v", err)
	}
	for _, p := range list.GetProcesses() {
		if p.ExecId != "" {
			continue
		}
		_, _ = n.client.Kill(ctx, &taskapi.KillRequest{ID: p.ContainerId, Signal: 9, All: true})
		_, _ = n.client.Wait(ctx, &taskapi.WaitRequest{ID: p.ContainerId})
		if _, err := n.client.Delete(ctx, &taskapi.DeleteRequest{ID: p.ContainerId}); err != nil {
			n.Errorf("delete what is left: %v", err)
		}
	}
	n.kill()
}

func (n *node) ctx() (context.Context, context.CancelFunc) {
	return context.WithTimeout(namespaces.WithNamespace(context.Background(), "k8s.io"), deadline)
}

// must fails the test on an error and returns the other value.
func must[T any](n *node) func(v T, err error) T {
	return func(v T, err error) T {
		n.Helper()
		if err != nil {
			n.Fatal(err)
		}
		return v
	}
}
