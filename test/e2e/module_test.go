package e2e

import (
	"io"
	"net"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/engine"
	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
	"github.com/containerd-kuasar/containerd-kuasar/test/images"
	"github.com/containerd-kuasar/containerd-kuasar/wasm"
)

// withoutWasmEdge is the configuration of a node that has two engines.
const withoutWasmEdge = `
[plugins.'io.containerd.sandbox.controller.v1.wasm']
  wasmedge = '/nonexistent/wasmedge'
`

// eachEngine runs a test in a pod of each engine that CRI's clients choose by
// annotation. What engines do is tested by TestEngines.
func eachEngine(t *testing.T, test func(t *testing.T, n *fixture, p *bed.Pod)) {
	t.Helper()
	b := newModuleBed(t)
	for _, engine := range engine.Names {
		t.Run(engine, func(t *testing.T) {
			bed.RequireEngine(t, engine)
			n := on(t, b, bed.Wasm)
			test(t, n, n.pod(choose(engine)))
		})
	}
}

func newModuleBed(t *testing.T) *bed.Bed {
	t.Helper()
	return newModuleBedOf(t, "")
}

func newModuleBedOf(t *testing.T, config string) *bed.Bed {
	t.Helper()
	b := newBed(t, bed.Options{Config: config})
	if err := b.Pull(t.Context(), images.Probe); err != nil {
		t.Fatal(err)
	}
	return b
}

// probe makes a container run a command of the probe.
func probe(args ...string) func(*runtime.ContainerConfig) {
	return func(c *runtime.ContainerConfig) {
		c.Image, c.Command, c.Args = &runtime.ImageSpec{Image: images.Probe}, nil, args
	}
}

func TestModuleLogs(t *testing.T) {
	eachEngine(t, func(t *testing.T, n *fixture, p *bed.Pod) {
		c := n.run(p, probe("args", "one", "two"))
		status := n.exit(c)
		equal(t, "exit code", status.ExitCode, 0)
		equal(t, "reason", status.Reason, "Completed")
		equal(t, "logs", n.crictl("logs", c.ID), "one\ntwo")
		c = n.run(p, probe("exit", "7"))
		equal(t, "exit code", n.exit(c).ExitCode, 7)
	})
}

func TestModuleStops(t *testing.T) {
	eachEngine(t, func(t *testing.T, n *fixture, p *bed.Pod) {
		c := n.run(p, probe("loop"))
		n.must(c.AwaitLog(n.ctx, "looping"))
		n.must(c.Stop(n.ctx, 30))
		equal(t, "exit code", n.exit(c).ExitCode, 128+15)
	})
}

func TestModuleStats(t *testing.T) { eachEngine(t, moduleStats) }

func moduleStats(t *testing.T, n *fixture, p *bed.Pod) {
	c := n.run(p, probe("loop"))
	n.must(c.AwaitLog(n.ctx, "looping"))
	container, err := n.Runtime.ContainerStats(n.ctx, &runtime.ContainerStatsRequest{ContainerId: c.ID})
	n.must(err)
	atLeast(t, "CPU time in ns", container.Stats.Cpu.UsageCoreNanoSeconds.GetValue(), 1)
	atLeast(t, "working set in bytes", container.Stats.Memory.WorkingSetBytes.GetValue(), 64<<10)
	pod, err := n.Runtime.PodSandboxStats(n.ctx, &runtime.PodSandboxStatsRequest{PodSandboxId: p.ID})
	n.must(err)
	atLeast(t, "pod's CPU time in ns", pod.Stats.Linux.Cpu.UsageCoreNanoSeconds.GetValue(), 1)
	atLeast(t, "pod's processes", pod.Stats.Linux.Process.ProcessCount.GetValue(), 1)
	equal(t, "pod's interface", pod.Stats.Linux.Network.DefaultInterface.Name, "eth0")
}

func TestModuleLimits(t *testing.T) { eachEngine(t, moduleLimits) }

func moduleLimits(t *testing.T, n *fixture, p *bed.Pod) {
	c := n.run(p, func(c *runtime.ContainerConfig) {
		probe("sleep")(c)
		c.Linux.Resources = &runtime.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 50000, MemoryLimitInBytes: 256 << 20}
	})
	equal(t, "CPU quota", n.limit(c, "cpu.max"), "50000")
	equal(t, "memory limit", n.limit(c, "memory.max"), "268435456")
	_, err := n.Runtime.UpdateContainerResources(n.ctx, &runtime.UpdateContainerResourcesRequest{
		ContainerId: c.ID,
		Linux:       &runtime.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 20000, MemoryLimitInBytes: 128 << 20},
	})
	n.must(err)
	equal(t, "CPU quota after the update", n.limit(c, "cpu.max"), "20000")
	equal(t, "memory limit after the update", n.limit(c, "memory.max"), "134217728")
}

func TestModuleExec(t *testing.T) {
	eachEngine(t, func(t *testing.T, n *fixture, p *bed.Pod) {
		c := n.run(p, probe("sleep"))
		equal(t, "another module", n.crictl("exec", "--sync", c.ID, "/probe.wasm", "args", "inside"), "inside")
		equal(t, "one more", n.crictl("exec", "--sync", c.ID, "/hello.wasm"), "hello")
		_, err := c.Exec(n.ctx, "true")
		if err == nil {
			t.Fatal("there was a shell")
		}
		contains(t, "a program", err.Error(), "only modules of the container's can run")
	})
}

// TestModuleServes has modules take connections in their pod's network.
func TestModuleServes(t *testing.T) {
	b := newModuleBed(t)
	listening := func(c *runtime.ContainerConfig) {
		probe("serve", "4")(c)
		c.Envs = []*runtime.KeyValue{{Key: "KUASAR_LISTEN", Value: []byte("8080")}}
	}
	for engine, change := range map[string]func(*runtime.ContainerConfig){
		"wazero": listening,
		"wasmedge": func(c *runtime.ContainerConfig) {
			probe("8080")(c)
			c.Command = []string{"/serve.wasm"}
		},
	} {
		t.Run(engine, func(t *testing.T) {
			bed.RequireEngine(t, engine)
			n := on(t, b, bed.Wasm)
			p := n.pod(choose(engine))
			k := n.run(p, change)
			n.must(k.AwaitLog(n.ctx, "listening"))
			status, err := p.Status(n.ctx)
			n.must(err)
			for range 3 {
				equal(t, "answer", n.ask(status.Network.Ip+":8080"), "served\n")
			}
			if engine == "wazero" { // what it listens to is not another module's, too
				equal(t, "exec", n.crictl("exec", "--sync", k.ID, "/probe.wasm", "args", "beside"), "beside")
			}
			n.must(k.Stop(n.ctx, 0))
		})
	}
	t.Run("wasmtime", func(t *testing.T) {
		n := on(t, b, bed.Wasm)
		k, err := n.pod(choose("wasmtime")).Create(n.ctx, listening)
		n.must(err)
		if err := k.Start(n.ctx); err == nil || !strings.Contains(err.Error(), "is for modules on wazero") {
			t.Errorf("start: %v", err)
		}
	})
}

// ask is what a server says.
func (n *fixture) ask(address string) string {
	n.t.Helper()
	c, err := (&net.Dialer{}).DialContext(n.ctx, "tcp", address)
	n.must(err)
	defer c.Close()
	if until, ok := n.ctx.Deadline(); ok {
		n.must(c.SetDeadline(until))
	}
	text, err := io.ReadAll(c)
	n.must(err)
	return string(text)
}

// TestModuleRefused holds that who starts what cannot run is told why, once at
// the start and in the container's status.
func TestModuleRefused(t *testing.T) {
	eachEngine(t, func(t *testing.T, n *fixture, p *bed.Pod) {
		for name, c := range map[string]struct {
			change func(*runtime.ContainerConfig)
			says   string
		}{
			"program of an image": {bed.Script("true"), "it is a program for Linux"},
			"unknown program":     {entry("unknown"), "not found"},
			"program for Linux":   {entry("/program"), "it is a program for Linux"},
			"text":                {entry("/text.wasm"), "no WebAssembly module"},
			"module cut short":    {entry("/short.wasm"), "cut short"},
			"missing import":      {entry("/import.wasm"), "needs env.missing"},
			"library":             {entry("/library.wasm"), "_start"},
			"nothing":             {entry("/nothing.wasm"), "/nothing.wasm"},
		} {
			t.Run(name, func(t *testing.T) {
				k, err := p.Create(n.ctx, c.change)
				n.must(err)
				err = k.Start(n.ctx)
				if err == nil {
					t.Fatal("it started")
				}
				contains(t, "error", err.Error(), c.says)
				status, err := k.Status(n.ctx)
				n.must(err)
				equal(t, "state", status.State, runtime.ContainerState_CONTAINER_EXITED)
				equal(t, "reason", status.Reason, "StartError")
				contains(t, "status", status.Message, c.says)
				if len(status.Message) > 2000 || strings.Contains(status.Message, "\n") {
					t.Errorf("message %q is no line", status.Message)
				}
			})
		}
	})
}

// entry makes a container run a file of the probe's image.
func entry(path string) func(*runtime.ContainerConfig) {
	return func(c *runtime.ContainerConfig) {
		c.Image, c.Command = &runtime.ImageSpec{Image: images.Probe}, []string{path}
	}
}

// TestEngineRefused holds that a pod is not made whose engine there is not.
func TestEngineRefused(t *testing.T) {
	b := newModuleBedOf(t, withoutWasmEdge)
	for engine, says := range map[string][]string{
		"wasmedge": {"/nonexistent/wasmedge", "wasmedge ="},
		"v8":       {wasm.Annotation, `"v8"`, "wazero, wasmtime, wasmedge"},
	} {
		t.Run(engine, func(t *testing.T) {
			n := on(t, b, bed.Wasm)
			p, err := n.RunPod(n.ctx, n.handler, choose(engine))
			if err == nil {
				n.must(p.Remove(n.ctx))
				t.Fatal("it was made")
			}
			contains(t, "error", err.Error(), says...)
		})
	}
}

// TestHandlersTogether runs pods of all sandboxers at the same time.
func TestHandlersTogether(t *testing.T) {
	b := newModuleBed(t)
	n := on(t, b, bed.Runc)
	linux := n.run(n.pod(nil), nil)
	n.handler = bed.Wasm
	module := n.run(n.pod(nil), probe("sleep"))
	n.must(module.AwaitLog(n.ctx, "sleeping"))
	equal(t, "a container of runc", n.exec(linux, "echo here"), "here")
	equal(t, "one of wasm", n.crictl("exec", "--sync", module.ID, "/probe.wasm", "args", "here"), "here")
}
