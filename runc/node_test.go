package runc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/netns"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/task"
	"github.com/containerd-kuasar/containerd-kuasar/task/worker"
)

// patience bounds everything that a test waits for.
const patience = 30 * time.Second

// group is above all cgroups of this run of the tests.
var group = fmt.Sprintf("/kuasar-runc-test-%d", os.Getpid())

// busybox is what the containers run.
const busybox = "/bin/busybox"

// program is the static kuasar-task, built once.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "runc-test-")
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
	return path, os.Chmod(dir, 0o755) // another user's root mounts it
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := program(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	removeCgroups()
	os.Exit(code)
}

// removeCgroups removes what is empty of group, deepest first.
func removeCgroups() {
	for _, root := range []string{"/sys/fs/cgroup" + group, "/sys/fs/cgroup/*" + group} {
		for _, below := range []string{"/*/*", "/*", ""} {
			dirs, _ := filepath.Glob(root + below)
			for _, dir := range dirs {
				_ = os.Remove(dir)
			}
		}
	}
}

// node is a state directory with a worker, as one life of a daemon has it.
type node struct {
	testing.TB
	dir     string
	backend *Backend
	worker  *worker.Worker
	pods    int
}

func newNode(t testing.TB) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it runs containers")
	}
	if _, err := os.Stat(busybox); err != nil {
		t.Skip("needs a static busybox (Debian: busybox-static)")
	}
	if _, err := program(); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "n") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	must(t, os.Chmod(dir, 0o711))
	n := &node{TB: t, dir: dir}
	n.boot()
	t.Cleanup(n.end)
	return n
}

// boot starts a daemon's life.
func (n *node) boot() {
	n.Helper()
	w, err := worker.New(worker.Config{Find: program, Dir: filepath.Join(n.dir, "w"), Cgroup: group + "/worker"})
	if err != nil {
		n.Fatal(err)
	}
	n.worker = w
	n.backend = &Backend{Worker: w, Defaults: Defaults}
}

// end kills the worker and finds what the tests left behind.
func (n *node) end() {
	must(n, n.worker.Close())
	// Whoever listens: a daemon that ends while it connects does not know yet.
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
	n.Helper()
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

// box is a pod under test with what its Controller would keep of it.
type box struct {
	testing.TB
	*pod
	node  *node
	spec  sandbox.Spec
	saved json.RawMessage
}

func (n *node) spec(config *runtime.PodSandboxConfig, netns string) sandbox.Spec {
	n.Helper()
	n.pods++
	id := fmt.Sprintf("pod%d", n.pods)
	dir := filepath.Join(n.dir, id)
	must(n, os.Mkdir(dir, 0o711))
	if config.Linux == nil {
		config.Linux = &runtime.LinuxPodSandboxConfig{}
	}
	config.Linux.CgroupParent = group + "/" + id
	return sandbox.Spec{ID: id, Namespace: "ns", Dir: dir, Config: config, NetNS: netns}
}

func (n *node) create(spec sandbox.Spec) *box {
	n.Helper()
	b := &box{TB: n.TB, node: n, spec: spec}
	b.spec.Saved = func(context.Context) (err error) { b.saved, err = b.Save(); return err }
	ctx, cancel := n.ctx()
	defer cancel()
	s, err := n.backend.Create(ctx, b.spec)
	if err != nil {
		n.Fatal(err)
	}
	b.pod = s.(*pod)
	n.Cleanup(b.remove)
	return b
}

// start makes a pod that runs.
func (n *node) start(config *runtime.PodSandboxConfig, netns string) *box {
	n.Helper()
	b := n.create(n.spec(config, netns))
	ctx, cancel := n.ctx()
	defer cancel()
	must(n, b.Start(ctx))
	must(n, b.spec.Saved(ctx))
	return b
}

// restore is the pod in the node's present daemon.
func (b *box) restore() {
	b.Helper()
	ctx, cancel := b.node.ctx()
	defer cancel()
	s, err := b.node.backend.Restore(ctx, b.spec, b.saved)
	if err != nil {
		b.Fatal(err)
	}
	b.pod = s.(*pod)
}

func (b *box) remove() {
	ctx, cancel := b.node.ctx()
	defer cancel()
	must(b, b.Stop(ctx))
	must(b, b.Delete(ctx))
	must(b, b.Delete(ctx))
	for _, name := range []string{"ns", "containers"} {
		left, _ := filepath.Glob(filepath.Join(b.spec.Dir, name, "*"))
		for _, path := range left {
			if info, err := os.Stat(path); err == nil && info.IsDir() {
				b.Errorf("left behind: %s", path)
			}
		}
	}
}

func (b *box) over() bool {
	select {
	case <-b.pod.over:
		return true
	default:
		return false
	}
}

// container is one with its output in a file.
type container struct {
	*box
	id, out string
	agent   *task.Client
}

// command is a container as CRI would describe it.
func command(b *box, shared bool, args ...string) *sandbox.Container {
	pid := ""
	if shared {
		pid = fmt.Sprintf("/proc/%d/ns/pid", b.Pid())
	}
	path := func(kind string) string { return fmt.Sprintf("/proc/%d/ns/%s", b.Pid(), kind) }
	s := &specs.Spec{
		Version:     specs.Version,
		Annotations: map[string]string{"io.kubernetes.cri.sandbox-id": b.spec.ID},
		Root:        &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}, Capabilities: &specs.LinuxCapabilities{
			Bounding: []string{"CAP_KILL"}, Effective: []string{"CAP_KILL"}, Permitted: []string{"CAP_KILL"}}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm"},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace}, {Type: specs.PIDNamespace, Path: pid},
				{Type: specs.NetworkNamespace, Path: path("net")}, {Type: specs.IPCNamespace, Path: path("ipc")},
				{Type: specs.UTSNamespace, Path: path("uts")},
			},
		},
	}
	if u := b.ns.User; u != nil {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: path("user")})
		s.Linux.UIDMappings = []specs.LinuxIDMapping{u.UID}
		s.Linux.GIDMappings = []specs.LinuxIDMapping{u.GID}
	}
	return &sandbox.Container{Spec: s}
}

// image is a rootfs that belongs to root of the pod.
func (b *box) image() []mount.Mount {
	b.Helper()
	dir, err := os.MkdirTemp(b.node.dir, "image")
	must(b, err)
	must(b, os.Chmod(dir, 0o755))
	for _, d := range []string{"bin", "proc", "dev", "etc", "sys"} {
		must(b, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	bin, err := os.ReadFile(busybox)
	must(b, err)
	must(b, os.WriteFile(filepath.Join(dir, "bin/busybox"), bin, 0o755))
	for _, name := range []string{"sh", "cat", "sleep", "readlink", "hostname", "kill", "ps", "id", "mount", "touch", "stat"} {
		must(b, os.Symlink("busybox", filepath.Join(dir, "bin", name)))
	}
	uid, gid := b.ns.User.Root()
	must(b, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, uid, gid))
	}))
	return []mount.Mount{{Type: "bind", Source: dir, Options: []string{"rbind", "rw"}}}
}

// run prepares and starts a container.
func (b *box) run(id string, c *sandbox.Container) *container {
	b.Helper()
	ctx, cancel := b.node.ctx()
	defer cancel()
	c.ID, c.Rootfs = id, b.image()
	c.Spec.Linux.CgroupsPath = filepath.Join(b.parent, id)
	bundle, err := b.Prepare(ctx, c)
	must(b, err)
	agent, err := b.Agent(ctx)
	must(b, err)
	k := &container{box: b, id: id, out: filepath.Join(b.node.dir, b.spec.ID+"-"+id), agent: agent}
	_, err = agent.Create(ctx, &taskapi.CreateTaskRequest{
		ID: id, Bundle: bundle.Path, Options: bundle.Options, Stdout: "file://" + k.out, Stderr: "file://" + k.out,
	})
	must(b, err)
	_, err = agent.Start(ctx, &taskapi.StartRequest{ID: id})
	must(b, err)
	return k
}

// wait returns the container's status and output once it ended, and removes it.
func (k *container) wait() (uint32, string) {
	k.Helper()
	ctx, cancel := k.node.ctx()
	defer cancel()
	r, err := k.agent.Wait(ctx, &taskapi.WaitRequest{ID: k.id})
	must(k, err)
	_, err = k.agent.Delete(ctx, &taskapi.DeleteRequest{ID: k.id})
	must(k, err)
	must(k, k.Release(ctx, k.id))
	b, err := os.ReadFile(k.out)
	must(k, err)
	return r.ExitStatus, string(b)
}

// sh runs a script in a container of its own and returns what it says.
func (b *box) sh(script string) string {
	b.Helper()
	b.node.pods++
	k := b.run(fmt.Sprintf("c%d", b.node.pods), command(b, false, "sh", "-c", script))
	status, out := k.wait()
	if status != 0 {
		b.Errorf("%s: status %d: %s", script, status, out)
	}
	return out
}

// netNS makes a network namespace as CRI does.
func (n *node) netNS() string {
	n.Helper()
	ns, err := netns.NewNetNS(n.dir)
	must(n, err)
	n.Cleanup(func() { must(n, ns.Remove()) })
	return ns.GetPath()
}

func inode(t testing.TB, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
