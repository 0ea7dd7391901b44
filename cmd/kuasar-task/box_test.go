package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
)

// box is one container with its bundle and FIFOs.
type box struct {
	*node
	id, bundle string
	spec       *specs.Spec
	req        *taskapi.CreateTaskRequest
	out        *output
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
