// Package wasm is the backend for WebAssembly: a pod's containers are modules,
// each run by an engine in a process of the node's one worker.
//
// A pod is its files, its network namespace and its cgroup. It has no process
// and no other namespace, for there is nothing in WASI that would show them.
package wasm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/internal/cgroup"
	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/host"
	"github.com/containerd-kuasar/containerd-kuasar/task"
	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/engine"
)

var (
	fpStarted = failpoint.New("wasm/pod/started")
	fpStopped = failpoint.New("wasm/pod/stopped")
)

// warm covers the time until a container's process is moved into its cgroup:
// CRI makes the first container of a pod right after the pod.
const warm = 300 * time.Millisecond

// Worker is the agent that all pods of the node share; see package worker.
type Worker interface {
	// Agent returns a live connection, and starts the worker if there is none.
	Agent(ctx context.Context) (*task.Client, error)
	// Pids are the processes that were the worker, the newest first.
	Pids() []uint32
}

// Backend implements sandbox.Backend.
type Backend struct {
	Worker Worker

	// Find returns the path of an engine's program. wazero has none of its own.
	Find func(name string) (string, error)

	// Cache is the directory of compiled modules, CacheSize its limit in bytes.
	Cache     string
	CacheSize int64

	// Sysctls that every pod gets.
	Sysctls func() host.Defaults
}

var (
	_ sandbox.Backend   = (*Backend)(nil)
	_ sandbox.Processer = (*pod)(nil)
	_ sandbox.Specer    = (*pod)(nil)
	_ sandbox.Statser   = (*pod)(nil)
	_ sandbox.Updater   = (*pod)(nil)
)

// pod implements sandbox.Sandbox. It keeps little: there are many.
type pod struct {
	backend *Backend

	id, namespace, dir string
	parent             string // of its cgroups
	netns              string
	systemd            bool
	engine             engine.Options

	over chan struct{} // closed when it is no longer running

	mu      sync.Mutex
	config  *runtime.PodSandboxConfig // until Start returns
	sysctls host.Sysctls              // likewise
	exit    sandbox.Exit
	stop    bool
	start   bool // Start returned, in this or a former daemon
}

// state is what Save returns.
type state struct {
	Boot    string `json:"boot"` // of the start; empty before it
	Stopped bool   `json:"stopped,omitempty"`
}

// Create implements sandbox.Backend.
func (b *Backend) Create(_ context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	p, err := b.pod(spec, b.Sysctls())
	if err != nil {
		return nil, fmt.Errorf("create pod %s: %w", spec.ID, err)
	}
	if _, err := b.Find(p.engine.Engine); err != nil {
		return nil, fmt.Errorf("create pod %s: %w", spec.ID, err)
	}
	return p, nil
}

func (b *Backend) pod(spec sandbox.Spec, defaults host.Defaults) (*pod, error) {
	opts, err := Parse(spec.Options.TOML)
	if err != nil {
		return nil, err
	}
	name, err := opts.choose(spec.Config.GetAnnotations())
	if err != nil {
		return nil, err
	}
	plan, err := host.Plan(spec.Config, spec.NetNS, defaults)
	if err != nil {
		return nil, err
	}
	if plan.User != nil {
		return nil, invalid("a Wasm pod has no user namespace: its modules reach nothing that one would protect; set hostUsers: true")
	}
	parent := spec.Config.GetLinux().GetCgroupParent()
	systemd := host.SystemdRunning() && strings.HasSuffix(parent, ".slice")
	return &pod{
		backend: b, id: spec.ID, namespace: spec.Namespace, dir: spec.Dir, parent: parent, netns: spec.NetNS, systemd: systemd,
		engine: engine.Options{Engine: name, Cache: b.Cache, CacheSize: b.CacheSize, SystemdCgroup: systemd},
		over:   make(chan struct{}), config: spec.Config, sysctls: host.Sysctls{Net: plan.Sysctls.Net},
	}, nil
}

// Restore implements sandbox.Backend. The pod runs if it did in this boot.
func (b *Backend) Restore(_ context.Context, spec sandbox.Spec, saved json.RawMessage) (sandbox.Sandbox, error) {
	p, err := b.pod(spec, host.Defaults{})
	if err != nil {
		return nil, fmt.Errorf("restore pod %s: %w", spec.ID, err)
	}
	var s state
	if len(saved) > 0 {
		if err := json.Unmarshal(saved, &s); err != nil {
			return nil, fmt.Errorf("restore pod %s: %w: %w", spec.ID, err, errdefs.ErrDataLoss)
		}
	}
	p.config, p.sysctls = nil, host.Sysctls{}
	if s.Boot != record.Boot() || s.Stopped {
		p.stop = true
		p.end()
		return p, nil
	}
	p.start = true
	return p, nil
}

// Save implements sandbox.Sandbox.
func (p *pod) Save() (json.RawMessage, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := state{Stopped: p.stop}
	if p.start {
		s.Boot = record.Boot()
	}
	return json.Marshal(s)
}

// Start implements sandbox.Sandbox.
func (p *pod) Start(ctx context.Context) error {
	cgroup.Warm(warm)
	// Only the node's first pod has to wait for this.
	agent := make(chan error, 1)
	go func() {
		_, err := p.backend.Worker.Agent(ctx)
		agent <- err
	}()
	err := errors.Join(host.MakeFiles(p.dir, p.config, nil), host.Pin(p.dir, host.Namespaces{Net: p.netns, Sysctls: p.sysctls}))
	if err = errors.Join(<-agent, err); err != nil {
		return fmt.Errorf("start pod %s: %w", p.id, errors.Join(err, host.Unpin(p.dir)))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.config, p.sysctls, p.start = nil, host.Sysctls{}, true
	fpStarted.Hit()
	return nil
}

// Agent implements sandbox.Sandbox.
func (p *pod) Agent(ctx context.Context) (*task.Client, error) {
	p.mu.Lock()
	started := p.start
	p.mu.Unlock()
	if !started {
		return nil, fmt.Errorf("agent of pod %s: it has not started: %w", p.id, errdefs.ErrUnavailable)
	}
	return p.backend.Worker.Agent(ctx)
}

// Prepare implements sandbox.Sandbox.
func (p *pod) Prepare(ctx context.Context, c *sandbox.Container) (sandbox.Bundle, error) {
	cgroup.Warm(warm)
	b, err := p.prepare(ctx, c)
	if err != nil {
		return b, fmt.Errorf("prepare container %s of pod %s: %w", c.ID, p.id, err)
	}
	return b, nil
}

func (p *pod) prepare(ctx context.Context, c *sandbox.Container) (sandbox.Bundle, error) {
	switch {
	case c.Spec == nil:
		return sandbox.Bundle{}, invalid("it has no spec")
	case c.Spec.Process == nil:
		return sandbox.Bundle{}, invalid("its spec has no process: there is no module to run")
	case c.Spec.Process.Terminal != c.IO.Terminal:
		return sandbox.Bundle{}, invalid("its spec says terminal=%t and its stdio says %t", c.Spec.Process.Terminal, c.IO.Terminal)
	}
	p.mu.Lock()
	stop := p.stop
	p.mu.Unlock()
	if stop {
		return sandbox.Bundle{}, fmt.Errorf("the pod stops: %w", errdefs.ErrFailedPrecondition)
	}
	o := p.engine
	var err error
	if o.Program, err = p.backend.Find(o.Engine); err != nil {
		return sandbox.Bundle{}, err
	}
	options, err := o.Any()
	if err != nil {
		return sandbox.Bundle{}, err
	}
	p.view().Apply(c.Spec)
	if c.Spec.Linux == nil {
		c.Spec.Linux = &specs.Linux{}
	}
	// It has none of the others. Nobody is to rely on them: where there is a pid
	// namespace, the end of its first process would end all.
	c.Spec.Linux.Namespaces = slices.DeleteFunc(c.Spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.PIDNamespace || ns.Type == specs.IPCNamespace || ns.Type == specs.UTSNamespace
	})
	c.Spec.Linux.CgroupsPath = host.Cgroup(c.Spec.Linux.CgroupsPath, c.ID, p.systemd)
	path, err := host.MakeBundle(ctx, p.dir, c.ID, c.Spec, c.Rootfs, nil)
	if err != nil {
		return sandbox.Bundle{}, err
	}
	return sandbox.Bundle{Path: path, Rootfs: c.Spec.Root.Path, Options: options}, nil
}

// view is the pod as its containers see it.
func (p *pod) view() host.View {
	return host.View{Net: p.netns, Pids: p.pids(), Dir: p.dir, HostIPC: true}
}

// Release implements sandbox.Sandbox.
func (p *pod) Release(_ context.Context, id string) error { return host.RemoveBundle(p.dir, id) }

// Stop implements sandbox.Sandbox.
func (p *pod) Stop(ctx context.Context) error {
	p.mu.Lock()
	p.stop = true
	p.mu.Unlock()
	if err := p.tenants().Kill(ctx); err != nil {
		return fmt.Errorf("stop pod %s: %w", p.id, err)
	}
	fpStopped.Hit()
	p.end()
	return nil
}

// Delete implements sandbox.Sandbox.
func (p *pod) Delete(ctx context.Context) error {
	t := p.tenants()
	ids, err := host.Bundles(p.dir)
	if err == nil {
		err = t.Kill(ctx)
	}
	if err == nil {
		err = t.Remove(ctx, ids...)
	}
	if err == nil {
		err = host.Unpin(p.dir)
	}
	if err != nil {
		return fmt.Errorf("delete pod %s: %w", p.id, err)
	}
	p.end()
	return nil
}

func (p *pod) tenants() host.Tenants {
	return host.Tenants{Dir: p.dir, Namespace: p.namespace, Agent: p.backend.Worker.Agent}
}

// Wait implements sandbox.Sandbox.
func (p *pod) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-p.over:
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.exit, nil
	case <-ctx.Done():
		return sandbox.Exit{}, fmt.Errorf("wait for pod %s: %w", p.id, ctx.Err())
	}
}

// end makes the pod over. The first call counts.
func (p *pod) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.over:
	default:
		p.exit = sandbox.Exit{At: time.Now()}
		close(p.over)
	}
}

// Pid implements sandbox.Processer: the worker.
func (p *pod) Pid() uint32 { return p.pids()[0] }

func (p *pod) pids() []uint32 {
	if pids := p.backend.Worker.Pids(); len(pids) > 0 {
		return slices.Clone(pids)
	}
	return []uint32{uint32(os.Getpid())}
}

// OCI implements sandbox.Specer.
func (p *pod) OCI() *specs.Spec {
	s := &specs.Spec{Version: specs.Version, Linux: &specs.Linux{}}
	if p.parent != "" {
		s.Linux.CgroupsPath = host.CgroupPath(p.parent, p.id)
	}
	if p.netns != "" {
		s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: p.netns}}
	}
	return s
}

// Stats implements sandbox.Statser.
func (p *pod) Stats(context.Context) (typeurl.Any, error) {
	m, err := host.Stats(p.parent)
	if err != nil {
		return nil, fmt.Errorf("stats of pod %s: %w", p.id, err)
	}
	return m, nil
}

// Update implements sandbox.Updater. The pod's limits are those of its cgroup,
// which the kubelet has changed before it tells us.
func (p *pod) Update(context.Context, sandbox.Resources) error { return nil }
