package wasm

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/host"
	"github.com/containerd-kuasar/containerd-kuasar/task/worker"
)

// patience bounds everything that a test waits for.
const patience = 30 * time.Second

// group is above all cgroups of this run of the tests.
var group = fmt.Sprintf("/kuasar-wasm-test-%d", os.Getpid())

// program is the static kuasar-task, built once.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "wasm-test-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "kuasar-task")
	cmd := exec.Command("go", "build", "-tags", "seccomp netgo osusergo",
		"-ldflags", `-s -w -extldflags "-static"`, "-o", path, "../cmd/kuasar-task")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build kuasar-task: %w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := program(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	for _, root := range []string{"/sys/fs/cgroup" + group, "/sys/fs/cgroup/*" + group} {
		for _, below := range []string{"/*/*", "/*", ""} {
			dirs, _ := filepath.Glob(root + below)
			for _, dir := range dirs {
				_ = os.Remove(dir)
			}
		}
	}
	os.Exit(code)
}

// node is a state directory with a worker, as one life of a daemon has it.
type node struct {
	testing.TB
	dir     string
	backend *Backend
	worker  *worker.Worker
}

func newNode(t testing.TB) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("missing: root")
	}
	dir, err := os.MkdirTemp("", "n") // t.TempDir is too long for a socket
	must(t, err)
	n := &node{TB: t, dir: dir}
	n.boot()
	t.Cleanup(n.end)
	return n
}

// boot starts a daemon's life, after the former one's.
func (n *node) boot() {
	n.Helper()
	if n.worker != nil {
		must(n, n.worker.Close())
	}
	w, err := worker.New(worker.Config{Find: program, Dir: filepath.Join(n.dir, "w"), Cgroup: group + "/worker"})
	must(n, err)
	n.worker = w
	n.backend = &Backend{
		Worker: w, Cache: filepath.Join(n.dir, "cache"),
		Find:    func(string) (string, error) { return "", nil },
		Sysctls: func() host.Defaults { return host.Defaults{} },
	}
}

// end kills the worker and finds what the tests left behind.
func (n *node) end() {
	must(n, n.worker.Close())
	if c, err := net.Dial("unix", filepath.Join(n.dir, "w", "agent.sock")); err == nil {
		raw, err := c.(*net.UnixConn).SyscallConn()
		must(n, err)
		must(n, raw.Control(func(fd uintptr) {
			cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
			must(n, err)
			n.kill(int(cred.Pid))
		}))
		c.Close()
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	must(n, err)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], n.dir+"/") {
			n.Errorf("leaked mount %s", f[4])
			_ = unix.Unmount(f[4], unix.MNT_DETACH)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(n.dir, "w", "containers", "*", "*")); len(left) > 0 {
		n.Errorf("leaked containers %q", left)
	}
	must(n, os.RemoveAll(n.dir))
}

func (n *node) kill(pid int) {
	f, err := pidfd.Open(pid, 0)
	if err != nil {
		return
	}
	defer f.Close()
	_ = pidfd.Signal(f, unix.SIGKILL)
	if got, err := unix.Poll([]unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}, int(patience.Milliseconds())); got != 1 || err != nil {
		n.Errorf("process %d does not die: %v", pid, err)
	}
}

func (n *node) ctx() (context.Context, context.CancelFunc) {
	return context.WithTimeout(namespaces.WithNamespace(context.Background(), "ns"), patience)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
