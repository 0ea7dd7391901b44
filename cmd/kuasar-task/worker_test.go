package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-kuasar/containerd-kuasar/task"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/task/hold"
)

// deadline of everything that a test waits for.
const deadline = 20 * time.Second

// cgroupParent of all containers of these tests.
const cgroupParent = "/kuasar-task-test"

// binary is the static kuasar-task, built once.
var binary = sync.OnceValues(func() (string, error) {
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
	if path, err := binary(); err == nil {
		os.RemoveAll(filepath.Dir(path))
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

// box is one container with its bundle and FIFOs.
type box struct {
	*node
	id, bundle string
	spec       *specs.Spec
	req        *taskapi.CreateTaskRequest
	out        *output
}

// output collects what comes out of a FIFO.
type output struct {
	path string
	buf  bytes.Buffer
	done chan struct{} // closed at its end
}

func (n *node) read(path string) *output {
	n.Helper()
	if err := unix.Mkfifo(path, 0o600); err != nil {
		n.Fatal(err)
	}
	// containerd opens its end before the task is created, without waiting.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		n.Fatal(err)
	}
	o := &output{path: path, done: make(chan struct{})}
	f := os.NewFile(uintptr(fd), path)
	started := make(chan struct{})
	go func() {
		defer close(o.done)
		defer f.Close()
		close(started)
		_, _ = o.buf.ReadFrom(untilEnd{f, fd})
	}()
	<-started
	return o
}

// untilEnd waits for the first writer: before it comes a FIFO reads as ended.
type untilEnd struct {
	f  *os.File
	fd int
}

func (r untilEnd) Read(b []byte) (int, error) {
	for {
		n, err := r.f.Read(b)
		if n > 0 || !errors.Is(err, io.EOF) {
			return n, err
		}
		fds := []unix.PollFd{{Fd: int32(r.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, int(deadline/time.Millisecond)); err != nil && err != unix.EINTR {
			return 0, err
		}
		if fds[0].Revents&unix.POLLHUP != 0 && fds[0].Revents&unix.POLLIN == 0 {
			return 0, io.EOF
		}
	}
}

func (o *output) String() string {
	select {
	case <-o.done:
		return o.buf.String()
	case <-time.After(deadline):
		return "(output does not end)"
	}
}

// newBox makes the bundle of a container that runs args.
func (n *node) newBox(args ...string) *box {
	n.Helper()
	bundle, err := os.MkdirTemp(n.dir, "b")
	if err != nil {
		n.Fatal(err)
	}
	id := filepath.Base(n.dir) + filepath.Base(bundle)
	b := &box{node: n, id: id, bundle: bundle, spec: spec(id, args)}
	busybox(n, filepath.Join(bundle, "rootfs"))
	b.out = n.read(filepath.Join(bundle, "stdout"))
	b.req = &taskapi.CreateTaskRequest{ID: id, Bundle: bundle, Stdout: b.out.path}
	return b
}

var applets = []string{"sh", "sleep", "cat", "echo", "true", "false", "kill", "ps", "stty", "head", "dd", "yes", "tty", "id", "mkdir", "touch"}

func busybox(n *node, rootfs string) {
	n.Helper()
	const source = "/bin/busybox"
	for _, dir := range []string{"bin", "proc", "dev", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(rootfs, dir), 0o755); err != nil {
			n.Fatal(err)
		}
	}
	data, err := os.ReadFile(source)
	if errors.Is(err, os.ErrNotExist) {
		n.Skipf("missing: %s (package busybox-static)", source)
	}
	if err != nil {
		n.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(rootfs, source), data, 0o755); err != nil {
		n.Fatal(err)
	}
	for _, a := range applets {
		if err := os.Symlink("busybox", filepath.Join(rootfs, "bin", a)); err != nil {
			n.Fatal(err)
		}
	}
}

func spec(id string, args []string) *specs.Spec {
	caps := []string{"CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_DAC_OVERRIDE"}
	return &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/bin", "HOME=/"},
			Capabilities:    &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			NoNewPrivileges: true,
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: cgroupParent + "/" + id,
			Resources: &specs.LinuxResources{
				Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
			},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace},
			},
			MaskedPaths:   []string{"/proc/kcore", "/proc/keys", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

func mountOf(source, target string) specs.Mount {
	return specs.Mount{Destination: target, Source: source, Options: []string{"bind", "ro"}}
}

// create writes the bundle and makes the container. It returns the pid.
func (b *box) create() uint32 {
	b.Helper()
	resp, err := b.tryCreate()
	if err != nil {
		b.Fatal(err)
	}
	return resp.Pid
}

func (b *box) tryCreate() (*taskapi.CreateTaskResponse, error) {
	b.Helper()
	data, err := json.Marshal(b.spec)
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.bundle, "config.json"), data, 0o600); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := b.ctx()
	defer cancel()
	return b.client.Create(ctx, b.req)
}

func (b *box) start() {
	b.Helper()
	ctx, cancel := b.ctx()
	defer cancel()
	must[*taskapi.StartResponse](b.node)(b.client.Start(ctx, &taskapi.StartRequest{ID: b.id}))
}

func (b *box) run() *box {
	b.Helper()
	b.create()
	b.start()
	return b
}

func (b *box) wait(exec string) uint32 {
	b.Helper()
	ctx, cancel := b.ctx()
	defer cancel()
	r := must[*taskapi.WaitResponse](b.node)(b.client.Wait(ctx, &taskapi.WaitRequest{ID: b.id, ExecID: exec}))
	if age := time.Since(r.ExitedAt.AsTime()); age < 0 || age > deadline {
		b.Errorf("%s exited at %v", b.id, r.ExitedAt.AsTime())
	}
	return r.ExitStatus
}

func (b *box) kill(sig uint32) {
	b.Helper()
	ctx, cancel := b.ctx()
	defer cancel()
	if _, err := b.client.Kill(ctx, &taskapi.KillRequest{ID: b.id, Signal: sig}); err != nil {
		b.Fatal(err)
	}
}

func (b *box) delete(exec string) *taskapi.DeleteResponse {
	b.Helper()
	ctx, cancel := b.ctx()
	defer cancel()
	return must[*taskapi.DeleteResponse](b.node)(b.client.Delete(ctx, &taskapi.DeleteRequest{ID: b.id, ExecID: exec}))
}

func (b *box) state(exec string) *taskapi.StateResponse {
	b.Helper()
	ctx, cancel := b.ctx()
	defer cancel()
	return must[*taskapi.StateResponse](b.node)(b.client.State(ctx, &taskapi.StateRequest{ID: b.id, ExecID: exec}))
}

// exec makes a process in the container known; its output is collected.
func (b *box) exec(id string, edit func(*taskapi.ExecProcessRequest), args ...string) *output {
	b.Helper()
	out := b.read(filepath.Join(b.bundle, "stdout-"+id))
	r := &taskapi.ExecProcessRequest{ID: b.id, ExecID: id, Stdout: out.path}
	if edit != nil {
		edit(r)
	}
	r.Spec = b.processSpec(args...)
	ctx, cancel := b.ctx()
	defer cancel()
	if _, err := b.client.Exec(ctx, r); err != nil {
		b.Fatal(err)
	}
	return out
}

// processSpec is that of another process in the container.
func (b *box) processSpec(args ...string) *anypb.Any {
	b.Helper()
	p := *b.spec.Process
	p.Args = args
	data, err := json.Marshal(p)
	if err != nil {
		b.Fatal(err)
	}
	return &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: data}
}

func (b *box) startExec(id string) uint32 {
	b.Helper()
	ctx, cancel := b.ctx()
	defer cancel()
	return must[*taskapi.StartResponse](b.node)(b.client.Start(ctx, &taskapi.StartRequest{ID: b.id, ExecID: id})).Pid
}

// events collects a subscription's.
type events struct {
	mu   sync.Mutex
	cond sync.Cond
	list []*api.Event
	err  error
}

func (n *node) subscribe() *events {
	n.Helper()
	stream, err := n.client.Events(namespaces.WithNamespace(context.Background(), "k8s.io"), &api.EventsRequest{})
	if err != nil {
		n.Fatal(err)
	}
	if e, err := stream.Recv(); err != nil || e.Event != nil {
		n.Fatalf("first event is %v, %v", e, err)
	}
	v := &events{}
	v.cond.L = &v.mu
	go func() {
		for {
			e, err := stream.Recv()
			v.mu.Lock()
			if err == nil {
				v.list = append(v.list, e)
			} else {
				v.err = err
			}
			v.cond.Broadcast()
			v.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return v
}

// await returns the first event that is wanted.
func (b *box) await(wanted func(*api.Event) bool) *api.Event {
	b.Helper()
	v := b.events
	timer := time.AfterFunc(deadline, func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.err == nil {
			v.err = context.DeadlineExceeded
		}
		v.cond.Broadcast()
	})
	defer timer.Stop()
	v.mu.Lock()
	defer v.mu.Unlock()
	for i := 0; ; i++ {
		for i == len(v.list) {
			if v.err != nil {
				b.Fatalf("no such event among %v: %v", v.list, v.err)
			}
			v.cond.Wait()
		}
		if e := v.list[i]; e.ContainerId == b.id && wanted(e) {
			return e
		}
	}
}

func (b *box) awaitExit(exec string) *api.ProcessExit {
	b.Helper()
	return b.await(func(e *api.Event) bool { return e.GetExit() != nil && e.GetExit().ExecId == exec }).GetExit()
}

// leftovers lists cgroups and mounts that mention the container.
func (b *box) leftovers() string {
	var left []string
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		found, _ := filepath.Glob(pattern + cgroupParent + "/" + b.id)
		left = append(left, found...)
	}
	found, _ := filepath.Glob(filepath.Join(b.dir, "containers", "*", b.id))
	left = append(left, found...)
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err == nil && strings.Contains(string(mounts), b.id) {
		left = append(left, "a mount")
	}
	return strings.Join(left, " ")
}

func owner(info os.FileInfo) (uid, gid uint32) {
	st := info.Sys().(*syscall.Stat_t)
	return st.Uid, st.Gid
}
