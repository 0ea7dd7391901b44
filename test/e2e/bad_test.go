package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
	"github.com/containerd-kuasar/containerd-kuasar/test/images"
)

// TestBadHandler runs pods of handlers that are configured wrongly.
func TestBadHandler(t *testing.T) {
	const handler = "\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.%s]\n" +
		"runtime_type = 'io.containerd.kuasar.v1'\nsandboxer = '%s'\n%s\n"
	options := func(name, body string) string {
		return fmt.Sprintf("[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.%s.options]\n%s", name, body)
	}
	b := newBed(t, bed.Options{Config: fmt.Sprintf(handler, "nobody", "no-such-sandboxer", "") +
		fmt.Sprintf(handler, "key", "runc", options("key", "NoSuchKey = 1")) +
		fmt.Sprintf(handler, "kind", "runc", options("kind", "SystemdCgroup = 'perhaps'"))})
	for _, test := range []struct {
		name, handler string
		want          []string
	}{
		{"unknown handler", "none", []string{"none"}},
		{"unknown sandboxer", "nobody", []string{"no-such-sandboxer"}},
		{"unknown option", "key", []string{"NoSuchKey"}},
		{"wrong kind of option", "kind", []string{"SystemdCgroup"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := on(t, b, test.handler)
			_, err := n.RunPod(n.ctx, test.handler, nil)
			refused(t, err, test.want...)
			works(on(t, b, bed.Runc))
		})
	}
}

// TestBadAgent runs a pod where the agent's program is missing or another.
func TestBadAgent(t *testing.T) {
	for name, test := range map[string]struct{ path, want string }{
		"missing":     {"/no/such/kuasar-task", "/no/such/kuasar-task"},
		"a directory": {"/etc", "/etc"},
		"another":     {"/bin/true", "/bin/true"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, bed.Options{Config: fmt.Sprintf("[plugins.'io.containerd.kuasar.v1.worker']\npath = '%s'\n", test.path)})
			n := on(t, b, bed.Runc)
			_, err := n.RunPod(n.ctx, n.handler, nil)
			refused(t, err, test.want)
			works(on(t, b, bed.Stock))
		})
	}
}

// refused holds that something failed and that the error names its cause.
func refused(t testing.TB, err error, names ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	contains(t, "error", err.Error(), names...)
}

// works holds that the daemon still runs pods.
func works(n *fixture) {
	n.t.Helper()
	equal(n.t, "exec in a pod after it", n.exec(n.run(n.pod(nil), nil), "echo ok"), "ok")
}

// TestBadPod runs pods and containers that cannot be.
func TestBadPod(t *testing.T) {
	each(t, func(t *testing.T, n *fixture) {
		_, err := n.RunPod(n.ctx, n.handler, func(c *runtime.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"net.no_such_sysctl": "1"}
		})
		refused(t, err, "no_such_sysctl")
		p := n.pod(nil)
		for _, test := range []struct {
			name   string
			change func(*runtime.ContainerConfig)
			want   string
		}{
			{"program", func(c *runtime.ContainerConfig) { c.Command = []string{"/no/such/program"} }, "/no/such/program"},
			{"program that is a directory", func(c *runtime.ContainerConfig) { c.Command = []string{"/etc"} }, "/etc"},
			{"user", func(c *runtime.ContainerConfig) { c.Linux.SecurityContext.RunAsUsername = "no-such-user" }, "no users found"},
			{"seccomp profile", func(c *runtime.ContainerConfig) {
				c.Linux.SecurityContext.Seccomp = &runtime.SecurityProfile{
					ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: "/no/such/profile.json",
				}
			}, "/no/such/profile.json"},
			{"mount point below a file", func(c *runtime.ContainerConfig) {
				c.Mounts = []*runtime.Mount{{HostPath: "/etc", ContainerPath: "/etc/passwd/below"}}
			}, "/etc/passwd"},
			{"working directory below a file", func(c *runtime.ContainerConfig) { c.WorkingDir = "/etc/passwd/below" }, "/etc/passwd"},
			{"image", func(c *runtime.ContainerConfig) { c.Image.Image = "example.org/no/such/image:1" }, "no/such/image"},
		} {
			t.Run(test.name, func(t *testing.T) {
				_, err := p.Run(n.ctx, test.change)
				refused(t, err, test.want)
			})
		}
		equal(t, "exec in the pod after it", n.exec(n.run(p, nil), "echo ok"), "ok")
	})
}

// TestBadSpec makes tasks of specs that CRI would not write.
func TestBadSpec(t *testing.T) {
	n := on(t, newBed(t, bed.Options{}), bed.Runc)
	p := n.pod(nil)
	c, err := n.Client()
	n.must(err)
	ctx := namespaces.WithNamespace(n.ctx, bed.Namespace)
	image, err := c.GetImage(ctx, images.Busybox)
	n.must(err)
	for name, test := range map[string]struct {
		change oci.SpecOpts
		want   string
	}{
		"without process": {func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
			s.Process = nil
			return nil
		}, "process"},
		"without arguments": {oci.WithProcessArgs(), "process"},
		"without root": {func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
			s.Root = nil
			return nil
		}, "root"},
	} {
		t.Run(name, func(t *testing.T) {
			id := "bad-" + strings.ReplaceAll(name, " ", "-")
			container, err := c.NewContainer(ctx, id, client.WithSandbox(p.ID), client.WithNewSnapshot(id, image),
				client.WithNewSpec(oci.WithImageConfig(image), test.change))
			n.must(err)
			defer func() { n.must(container.Delete(ctx, client.WithSnapshotCleanup)) }()
			task, err := container.NewTask(ctx, cio.NullIO)
			if err == nil {
				err = task.Start(ctx)
				_, _ = task.Delete(ctx, client.WithProcessKill)
			}
			refused(t, err, test.want)
		})
	}
	works(n)
}

// TestFullDisk runs a pod where there is no space for what it must write.
func TestFullDisk(t *testing.T) {
	bed.Require(t)
	b, err := bed.New(bed.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	n := on(t, b, bed.Runc)
	dir := filepath.Join(b.State(), "kuasar")
	n.must(os.MkdirAll(dir, 0o711))
	n.must(unix.Mount("small", dir, "tmpfs", 0, "size=64k,mode=711"))
	n.must(b.Start(n.ctx))
	n.must(b.Pull(n.ctx, images.Busybox))
	n.must(os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 40<<10), 0o600))
	fill, err := os.OpenFile(filepath.Join(dir, "filler"), os.O_APPEND|os.O_WRONLY, 0)
	n.must(err)
	for err == nil {
		_, err = fill.Write(make([]byte, 4096))
	}
	n.must(fill.Close())
	_, err = n.RunPod(n.ctx, n.handler, nil)
	refused(t, err, "no space left on device")
	n.must(unix.Mount("small", dir, "", unix.MS_REMOUNT, "size=8m,mode=711"))
	works(n)
}

// TestLongPath runs a pod where the worker's sockets would have paths that
// are too long.
func TestLongPath(t *testing.T) {
	bed.Require(t)
	// The daemon's own sockets just fit, those below its state do not.
	long := filepath.Join(os.TempDir(), strings.Repeat("l", 79-len(os.TempDir())))
	if err := os.MkdirAll(long, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", long)
	b := newBed(t, bed.Options{})
	n := on(t, b, bed.Runc)
	_, err := n.RunPod(n.ctx, n.handler, nil)
	refused(t, err, "too long", b.State())
	works(on(t, b, bed.Stock))
}

// TestDamagedRecord restarts the daemon with a pod's record damaged: the pod
// is quarantined, its containers and all others live on, and with the record
// repaired it is back.
func TestDamagedRecord(t *testing.T) {
	b := newBed(t, bed.Options{})
	for name, damage := range map[string]func([]byte) []byte{
		"half-written": func(raw []byte) []byte { return raw[:len(raw)/2] },
		"from the future": func(raw []byte) []byte {
			return []byte(strings.Replace(string(raw), `"version":`, `"version":9`, 1))
		},
		"empty": func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			n := on(t, b, bed.Runc)
			victim, other := n.pod(nil), n.pod(nil)
			c, d := n.run(victim, nil), n.run(other, nil)
			pid := hostPid(n, c)
			record := filepath.Join(b.State(), "kuasar", "runc", victim.ID, "sandbox.json")
			raw, err := os.ReadFile(record)
			n.must(err)
			if string(damage(raw)) == string(raw) {
				t.Fatalf("the damage does nothing to %s", raw)
			}

			n.must(b.Kill())
			n.must(os.WriteFile(record, damage(raw), 0o600))
			mark := b.Mark()
			n.must(b.Start(n.ctx))
			n.must(syscall.Kill(pid, 0))
			equal(t, "exec in the other pod", n.exec(d, "echo ok"), "ok")
			contains(t, "log", b.Log(mark), victim.ID, "quarantine")
			if status, err := victim.Status(n.ctx); err == nil && status.State == runtime.PodSandboxState_SANDBOX_READY {
				t.Error("the damaged pod is ready")
			}
			if err := victim.Stop(n.ctx); err == nil {
				t.Error("the damaged pod was stopped")
			}
			n.must(syscall.Kill(pid, 0))

			n.must(b.Kill())
			n.must(os.WriteFile(record, raw, 0o600))
			n.must(b.Start(n.ctx))
			equal(t, "exec after repair", n.exec(c, "echo ok"), "ok")
			equal(t, "pid after repair", hostPid(n, c), pid)
		})
	}
}

// hostPid is a container's pid in the host's pid namespace.
func hostPid(n *fixture, c *bed.Container) int {
	n.t.Helper()
	client, err := n.Client()
	n.must(err)
	ctx := namespaces.WithNamespace(n.ctx, bed.Namespace)
	container, err := client.LoadContainer(ctx, c.ID)
	n.must(err)
	task, err := container.Task(ctx, nil)
	n.must(err)
	return int(task.Pid())
}
