package restart

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/engine"
	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
	"github.com/containerd-kuasar/containerd-kuasar/test/images"
	"github.com/containerd-kuasar/containerd-kuasar/wasm"
)

// module makes a container run a command of the probe.
func module(args ...string) containerOption {
	return func(c *runtime.ContainerConfig) {
		c.Image, c.Command, c.Args = &runtime.ImageSpec{Image: images.Probe}, nil, args
	}
}

// runModule is a Wasm pod with one running container.
func (n *node) runModule(args ...string) (*pod, string) {
	n.t.Helper()
	return n.runModuleOn(engine.Wazero, args...)
}

func (n *node) runModuleOn(name string, args ...string) (*pod, string) {
	n.t.Helper()
	config := n.podConfig()
	config.Annotations = map[string]string{wasm.Annotation: name}
	p, err := n.runPodOf(bed.Wasm, config)
	n.must(err)
	id, err := n.createContainer(p, "c", "", module(args...))
	n.must(err)
	n.must(n.startContainer(id))
	return p, id
}

// pid is that of a container's first process.
func (n *node) pid(id string) int {
	n.t.Helper()
	ctx := namespaces.WithNamespace(n.ctx, bed.Namespace)
	task, err := n.task(ctx, id)
	n.must(err)
	return int(task.Pid())
}

// TestModuleRunsOn kills what is beside a Wasm pod, which is the same after it.
func TestModuleRunsOn(t *testing.T) {
	n := newNode(t)
	for _, name := range engine.Names {
		t.Run(name, func(t *testing.T) {
			bed.RequireEngine(t, name)
			n := *n
			n.t = t
			n.moduleRunsOn(name)
		})
	}
}

func (n *node) moduleRunsOn(engine string) {
	t := n.t
	_, id := n.runModuleOn(engine, "sleep")
	before, pid := n.status(id), n.pid(id)
	for name, kill := range map[string]func(){
		"daemon":            func() { n.restart(nil) },
		"worker":            n.killWorker,
		"daemon and worker": func() { n.restart(n.killWorker) },
	} {
		kill()
		if after := n.status(id); !proto.Equal(before, after) {
			t.Errorf("%s: status before:\n%v\nafter:\n%v", name, before, after)
		}
		if got := n.pid(id); got != pid {
			t.Errorf("%s: process %d, was %d", name, got, pid)
		}
		r, err := n.Runtime.ExecSync(n.ctx, &runtime.ExecSyncRequest{ContainerId: id, Cmd: []string{"/probe.wasm", "args", name}})
		if err != nil || string(r.Stdout) != name+"\n" {
			t.Errorf("%s: exec: %q, %v", name, r.GetStdout(), err)
		}
	}
	if s, err := n.Runtime.ContainerStats(n.ctx, &runtime.ContainerStatsRequest{ContainerId: id}); err != nil || s.Stats.Memory.WorkingSetBytes.GetValue() == 0 {
		t.Errorf("stats %v, %v", s, err)
	}
	_, err := n.Runtime.StopContainer(n.ctx, &runtime.StopContainerRequest{ContainerId: id, Timeout: 30})
	n.must(err)
	if s := n.status(id); s.ExitCode != 128+int32(unix.SIGTERM) {
		t.Errorf("exit code %d", s.ExitCode)
	}
}

func TestModuleEndsWithoutDaemon(t *testing.T) {
	n := newNode(t)
	_, id := n.runModule("sleep")
	pid := n.pid(id)
	n.restart(func() { n.must(unix.Kill(pid, unix.SIGKILL)) })
	if s := n.awaitExit(id); s.ExitCode != 128+int32(unix.SIGKILL) {
		t.Errorf("exit code %d", s.ExitCode)
	}
}

// TestModuleOutput loses no line of what a module writes meanwhile.
func TestModuleOutput(t *testing.T) {
	const lines = 200000
	n := newNode(t)
	p, id := n.runModule("repeat", fmt.Sprint(lines))
	n.restart(nil)
	if s := n.awaitExit(id); s.ExitCode != 0 {
		t.Errorf("exit code %d", s.ExitCode)
	}
	next := 0
	for line := range strings.Lines(n.output(p, "c")) {
		if line != fmt.Sprintf("line %d\n", next) {
			t.Fatalf("%q instead of line %d", line, next)
		}
		next++
	}
	if next != lines {
		t.Errorf("%d lines of %d", next, lines)
	}
}
