package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
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

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
	"github.com/containerd-kuasar/containerd-kuasar/test/images"
	"github.com/containerd-kuasar/containerd-kuasar/wasm/wasmtest"
)

// engines have a handler each, kuasar-ENGINE.
var engines = []string{"wazero", "wasmtime", "wasmedge"}

func engineHandlers() string {
	var config strings.Builder
	for _, engine := range engines {
		fmt.Fprintf(&config, `
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kuasar-%[1]s]
  runtime_type = 'io.containerd.kuasar.v1'
  sandboxer = 'wasm'
  disable_pause_image_pull = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kuasar-%[1]s.options]
    engine = '%[1]s'
`, engine)
	}
	return config.String()
}

// wasmEnviron finds WasmEdge where hack/wasmedge has put it.
func wasmEnviron(root string) string {
	return "PATH=" + root + "/bin:" + root + "/build/wasmedge:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

// TestEngines runs the conformance suite of Wasm engines on each.
func TestEngines(t *testing.T) {
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	root = strings.TrimSuffix(root, "/test/e2e")
	b := newBed(t, bed.Options{Config: engineHandlers(), Environ: []string{wasmEnviron(root)}})
	if err := b.Pull(t.Context(), images.Probe); err != nil {
		t.Fatal(err)
	}
	for _, engine := range engines {
		t.Run(engine, func(t *testing.T) {
			if _, err := exec.LookPath(root + "/build/wasmedge/wasmedge"); engine == "wasmedge" && err != nil {
				if _, err := exec.LookPath("wasmedge"); err != nil {
					t.Skip("needs WasmEdge (hack/wasmedge)")
				}
			}
			n := on(t, b, "kuasar-"+engine)
			wasmtest.Run(t, &engineNode{n, n.pod(nil)})
		})
	}
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
