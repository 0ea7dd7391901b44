package restart

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
	"github.com/containerd-kuasar/containerd-kuasar/test/images"
)

func TestMain(m *testing.M) { bed.Main(m) }

// deadline bounds one test's calls.
const deadline = 2 * time.Minute

// node is a bed with one image, and the calls that a kubelet makes.
type node struct {
	*bed.Bed
	t       testing.TB
	ctx     context.Context
	handler string // of pods
}

func newNode(t testing.TB) *node {
	t.Helper()
	return newNodeOf(t, bed.Options{})
}

func newNodeOf(t testing.TB, options bed.Options) *node {
	t.Helper()
	b := bed.Test(t, options)
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(cancel)
	n := &node{Bed: b, t: t, ctx: ctx, handler: bed.Runc}
	n.must(b.Pull(ctx, images.Busybox))
	n.must(b.Pull(ctx, images.Probe))
	return n
}

func (n *node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

var counter atomic.Int64

// pod is a pod of ours.
type pod struct {
	id     string
	config *runtime.PodSandboxConfig
}

func (n *node) podConfig() *runtime.PodSandboxConfig {
	i := counter.Add(1)
	return &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: fmt.Sprintf("pod-%d", i), Uid: fmt.Sprint(i), Namespace: "restart"},
		Hostname:     "restart",
		LogDirectory: filepath.Join(n.Dir, "logs"),
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent:    "/restart",
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: separate},
		},
	}
}

// separate gives each container a pid namespace of its own.
var separate = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER}

// runPod does what may fail by design of a test, with the node's handler.
func (n *node) runPod(config *runtime.PodSandboxConfig) (*pod, error) {
	return n.runPodOf(n.handler, config)
}

func (n *node) runPodOf(handler string, config *runtime.PodSandboxConfig) (*pod, error) {
	r, err := n.Runtime.RunPodSandbox(n.ctx, &runtime.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		return nil, err
	}
	return &pod{id: r.PodSandboxId, config: config}, nil
}

// containerOption changes a container's configuration.
type containerOption func(*runtime.ContainerConfig)

func withTTY(c *runtime.ContainerConfig)   { c.Tty = true }
func withStdin(c *runtime.ContainerConfig) { c.Stdin = true }

func (n *node) createContainer(p *pod, name, script string, options ...containerOption) (string, error) {
	config := &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name},
		Image:    &runtime.ImageSpec{Image: images.Busybox},
		Command:  []string{"sh", "-c", script},
		LogPath:  p.config.Metadata.Name + "-" + name + ".log",
		Linux: &runtime.LinuxContainerConfig{
			SecurityContext: &runtime.LinuxContainerSecurityContext{NamespaceOptions: separate},
		},
	}
	for _, o := range options {
		o(config)
	}
	r, err := n.Runtime.CreateContainer(n.ctx, &runtime.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if err != nil {
		return "", err
	}
	return r.ContainerId, nil
}

func (n *node) startContainer(id string) error {
	_, err := n.Runtime.StartContainer(n.ctx, &runtime.StartContainerRequest{ContainerId: id})
	return err
}

// run is a pod with one running container.
func (n *node) run(script string, options ...containerOption) (*pod, string) {
	n.t.Helper()
	p, err := n.runPod(n.podConfig())
	n.must(err)
	id, err := n.createContainer(p, "c", script, options...)
	n.must(err)
	n.must(n.startContainer(id))
	return p, id
}

func (n *node) status(id string) *runtime.ContainerStatus {
	n.t.Helper()
	r, err := n.Runtime.ContainerStatus(n.ctx, &runtime.ContainerStatusRequest{ContainerId: id})
	n.must(err)
	return r.Status
}

// exec runs a script and returns its output.
func (n *node) exec(id, script string) string {
	n.t.Helper()
	r, err := n.Runtime.ExecSync(n.ctx, &runtime.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}})
	n.must(err)
	if r.ExitCode != 0 {
		n.t.Fatalf("exec %q: exit code %d: %s", script, r.ExitCode, r.Stderr)
	}
	return string(r.Stdout)
}

// awaitExit blocks until the container has exited.
func (n *node) awaitExit(id string) *runtime.ContainerStatus {
	n.t.Helper()
	ctx, cancel := context.WithCancel(n.ctx)
	defer cancel()
	events, err := n.Runtime.GetContainerEvents(ctx, &runtime.GetEventsRequest{})
	n.must(err)
	for {
		// Subscribed before asking: an exit cannot fall in between.
		if s := n.status(id); s.State == runtime.ContainerState_CONTAINER_EXITED {
			return s
		}
		_, err := events.Recv()
		n.must(err)
	}
}

// restart kills the daemon and starts it again; between runs while it is down.
func (n *node) restart(between func()) {
	n.t.Helper()
	n.must(n.Kill())
	if between != nil {
		between()
	}
	n.must(n.Start(n.ctx))
}

func (n *node) logPath(p *pod, name string) string {
	return filepath.Join(p.config.LogDirectory, p.config.Metadata.Name+"-"+name+".log")
}

// output is what the log says a container wrote to stdout.
func (n *node) output(p *pod, name string) string {
	n.t.Helper()
	b, err := os.ReadFile(n.logPath(p, name))
	n.must(err)
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		fields := strings.SplitN(line, " ", 4)
		if len(fields) != 4 || fields[1] != "stdout" {
			n.t.Fatalf("log entry %q", line)
		}
		text := fields[3]
		if fields[2] == "P" {
			text = strings.TrimSuffix(text, "\n")
		}
		out.WriteString(text)
	}
	return out.String()
}
