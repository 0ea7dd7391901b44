package e2e

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/engine"
	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
	"github.com/containerd-kuasar/containerd-kuasar/test/images"
	"github.com/containerd-kuasar/containerd-kuasar/wasm"
	"github.com/containerd-kuasar/containerd-kuasar/wasm/wasmtest"
)

// TestEngines runs the conformance suite of Wasm engines on each.
func TestEngines(t *testing.T) {
	b := newBed(t, bed.Options{})
	if err := b.Pull(t.Context(), images.Probe); err != nil {
		t.Fatal(err)
	}
	for _, name := range engine.Names {
		t.Run(name, func(t *testing.T) {
			bed.RequireEngine(t, name)
			n := on(t, b, bed.Wasm)
			wasmtest.Run(t, &engineNode{n, n.pod(choose(name))})
		})
	}
}

// choose makes a pod choose its engine.
func choose(engine string) func(*runtime.PodSandboxConfig) {
	return func(c *runtime.PodSandboxConfig) { c.Annotations = map[string]string{wasm.Annotation: engine} }
}

// engineNode runs containers of images.Probe in a pod, through containerd's
// API: CRI has no signals but SIGTERM.
type engineNode struct {
	*fixture
	pod *bed.Pod
}

var taskSerial atomic.Int64

// Start implements wasmtest.Node.
func (n *engineNode) Start(t *testing.T, c wasmtest.Container) (wasmtest.Task, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(t.Context(), bed.Namespace), deadline)
	t.Cleanup(cancel)
	client, err := n.Client()
	if err != nil {
		return nil, err
	}
	image, err := client.GetImage(ctx, images.Probe)
	if err != nil {
		return nil, err
	}
	id := "wasm-" + strconv.FormatInt(taskSerial.Add(1), 10)
	container, err := client.NewContainer(ctx, id, containerd.WithSandbox(n.pod.ID), containerd.WithNewSnapshot(id, image),
		containerd.WithNewSpec(oci.WithImageConfig(image), specify(c)))
	if err != nil {
		return nil, err
	}
	k := &engineTask{ctx: ctx, container: container, said: make(chan struct{}, 1)}
	streams := cio.WithStreams(strings.NewReader(c.Stdin), writer{k, &k.stdout}, writer{k, &k.stderr})
	k.task, err = container.NewTask(ctx, cio.NewCreator(streams))
	if err == nil {
		if k.exited, err = k.task.Wait(ctx); err == nil {
			err = k.task.Start(ctx)
		}
	}
	if err != nil {
		if k.task != nil {
			_, _ = k.task.Delete(ctx, containerd.WithProcessKill)
		}
		return nil, errors.Join(err, container.Delete(ctx, containerd.WithSnapshotCleanup))
	}
	if err := k.task.CloseIO(ctx, containerd.WithStdinCloser); err != nil {
		return nil, err
	}
	return k, nil
}

// specify makes the spec of a container.
func specify(c wasmtest.Container) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		s.Process.Args, s.Process.Cwd = c.Args, c.Dir
		if c.Dir == "" {
			s.Process.Cwd = "/"
		}
		s.Process.Env = append(s.Process.Env, c.Env...)
		s.Process.User.UID = c.User
		s.Root.Readonly = c.Frozen
		for _, m := range c.Mounts {
			options := []string{"rbind", "rw"}
			if m.ReadOnly {
				options[1] = "ro"
			}
			s.Mounts = append(s.Mounts, specs.Mount{Destination: m.Target, Type: "bind", Source: m.Source, Options: options})
		}
		if c.Memory > 0 {
			s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &c.Memory}
		}
		return nil
	}
}

// engineTask is a container that was started.
type engineTask struct {
	ctx       context.Context
	container containerd.Container
	task      containerd.Task
	exited    <-chan containerd.ExitStatus
	said      chan struct{} // has room for one: there is something new

	mu             sync.Mutex
	stdout, stderr bytes.Buffer
}

// writer is one of a task's streams.
type writer struct {
	task *engineTask
	to   *bytes.Buffer
}

func (w writer) Write(p []byte) (int, error) {
	w.task.mu.Lock()
	defer w.task.mu.Unlock()
	select {
	case w.task.said <- struct{}{}:
	default:
	}
	return w.to.Write(p)
}

var _ io.Writer = writer{}

// Await implements wasmtest.Task.
func (k *engineTask) Await(t *testing.T, text string) {
	t.Helper()
	for {
		k.mu.Lock()
		stdout := k.stdout.String()
		k.mu.Unlock()
		if strings.Contains(stdout, text) {
			return
		}
		select {
		case <-k.said:
		case <-k.ctx.Done():
			t.Fatalf("no %q on stdout, which has %q", text, stdout)
		}
	}
}

// Kill implements wasmtest.Task.
func (k *engineTask) Kill(t *testing.T, sig unix.Signal) {
	t.Helper()
	if err := k.task.Kill(k.ctx, sig); err != nil {
		t.Error(err)
	}
}

// Wait implements wasmtest.Task.
func (k *engineTask) Wait(t *testing.T) wasmtest.Result {
	t.Helper()
	status := <-k.exited
	_, err := k.task.Delete(k.ctx)
	if err := errors.Join(status.Error(), err, k.container.Delete(k.ctx, containerd.WithSnapshotCleanup)); err != nil {
		t.Error(err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return wasmtest.Result{Code: status.ExitCode(), Stdout: k.stdout.String(), Stderr: k.stderr.String()}
}
