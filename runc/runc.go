// Package runc is the backend for plain containers: namespaces and cgroups of
// this host. A pod has no process of its own. Its namespaces are pinned in the
// sandbox's directory, and its containers are held by the node's one worker.
//
// Only a pod whose containers share a process id namespace has an init, which
// must be the first process in it: a hidden container of the sandbox's id that
// runs `kuasar-task pause`. A pod in a user namespace has one while it starts,
// to make the pod's other namespaces from within.
//
// The Controller owns the pod's life (see package sandbox). What is here has
// two states, and a pod is over once it left the first:
//
//	running ──Stop, or its init died──▶ over
package runc

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-kuasar/containerd-kuasar/internal/cgroup"
	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/host"
	"github.com/containerd-kuasar/containerd-kuasar/task"
)

// Worker is the agent that all pods of the node share; see package worker.
type Worker interface {
	// Agent returns a live connection, and starts the worker if there is none.
	Agent(ctx context.Context) (*task.Client, error)
	// Pids are the processes that were the worker, the newest first.
	Pids() []uint32
	// Program is the path of kuasar-task.
	Program() (string, error)
	Reaper() *pidfd.Reaper
}

// Backend implements sandbox.Backend.
type Backend struct {
	Worker Worker
	// Defaults are the options of a handler that sets none.
	Defaults func() Options
}

var _ sandbox.Backend = (*Backend)(nil)

// pod implements sandbox.Sandbox, and of the optional interfaces Processer,
// Specer, Statser and Updater. It keeps little: there are many.
type pod struct {
	backend *Backend

	id, namespace, dir string
	parent             string // of its cgroups
	systemd            bool
	opts               Options
	ns                 host.Namespaces
	saved              func(context.Context) error

	over chan struct{} // closed when it is no longer running

	mu     sync.Mutex
	config *runtime.PodSandboxConfig // until Start returns
	label  string                    // SELinux's, of its processes
	exit   sandbox.Exit
	first  *initial // nil without an init
	making *making  // a start of the init, under way
	stop   bool     // Stop began: no init is started any more
	start  bool     // Start returned, in this or a former daemon
}

// state is what Save returns.
type state struct {
	Boot    string   `json:"boot"` // of the start; empty before it
	Init    *process `json:"init,omitempty"`
	Label   string   `json:"label,omitempty"` // SELinux's, of the pod's processes
	Stopped bool     `json:"stopped,omitempty"`
}

// process names one for the time of a boot.
type process struct {
	Pid   int    `json:"pid"`
	Start uint64 `json:"start"` // pidfd.StartTime
}

// Create implements sandbox.Backend.
func (b *Backend) Create(_ context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	p, err := b.pod(spec, b.Defaults())
	if err != nil {
		return nil, fmt.Errorf("create pod %s: %w", spec.ID, err)
	}
	return p, nil
}

func (b *Backend) pod(spec sandbox.Spec, defaults Options) (*pod, error) {
	opts, err := Parse(spec.Options.TOML, defaults)
	if err != nil {
		return nil, err
	}
	parent := spec.Config.GetLinux().GetCgroupParent()
	systemd, err := opts.systemd(parent, host.SystemdRunning())
	if err != nil {
		return nil, err
	}
	ns, err := host.Plan(spec.Config, spec.NetNS, opts.sysctls())
	if err != nil {
		return nil, err
	}
	return &pod{
		backend: b, id: spec.ID, namespace: spec.Namespace, dir: spec.Dir,
		parent: parent, systemd: systemd, opts: opts, ns: ns,
		saved: spec.Saved, config: spec.Config, over: make(chan struct{}),
	}, nil
}

// Restore implements sandbox.Backend. The pod runs if it did in this boot, its
// namespaces are there and its init, if it had one, lives.
func (b *Backend) Restore(_ context.Context, spec sandbox.Spec, saved json.RawMessage) (sandbox.Sandbox, error) {
	// The defaults have had their effect.
	p, err := b.pod(spec, Options{})
	if err != nil {
		return nil, fmt.Errorf("restore pod %s: %w", spec.ID, err)
	}
	var s state
	if len(saved) > 0 {
		if err := json.Unmarshal(saved, &s); err != nil {
			return nil, fmt.Errorf("restore pod %s: %w: %w", spec.ID, err, errdefs.ErrDataLoss)
		}
	}
	p.config, p.label = nil, s.Label
	p.ns.Sysctls = host.Sysctls{}
	if s.Boot != record.Boot() || s.Stopped {
		p.stop = true
		p.end(sandbox.Exit{At: time.Now()})
		return p, nil
	}
	p.start = true
	if err := p.reopen(s); err != nil {
		return nil, fmt.Errorf("restore pod %s: %w", spec.ID, err)
	}
	return p, nil
}

func (p *pod) reopen(s state) error {
	for _, t := range p.pins() {
		ok, err := host.IsPinned(p.dir, t)
		if err != nil {
			return err
		}
		if !ok { // it can neither be made again nor be entered
			p.end(unknown())
			return nil
		}
	}
	if s.Init == nil {
		return nil
	}
	f, err := pidfd.Open(s.Init.Pid, s.Init.Start)
	if errdefs.IsNotFound(err) {
		p.end(unknown())
		return nil
	}
	if err != nil {
		return err
	}
	return p.follow(&initial{process: *s.Init, file: f})
}

// unknown is the end of a pod that nobody saw.
func unknown() sandbox.Exit { return sandbox.Exit{Status: pidfd.UnknownStatus, At: time.Now()} }

// pins are the namespaces that the pod has in its directory while it runs,
// but for the init's.
func (p *pod) pins() []specs.LinuxNamespaceType {
	var types []specs.LinuxNamespaceType
	if p.ns.IPC {
		types = append(types, specs.IPCNamespace)
	}
	if p.ns.UTS {
		types = append(types, specs.UTSNamespace)
	}
	if p.ns.User != nil {
		types = append(types, specs.UserNamespace)
	}
	return types
}

// Save implements sandbox.Sandbox.
func (p *pod) Save() (json.RawMessage, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := state{Label: p.label, Stopped: p.stop}
	if p.start {
		s.Boot = record.Boot()
	}
	if p.first != nil {
		s.Init = &p.first.process
	}
	return json.Marshal(s)
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
func (p *pod) end(e sandbox.Exit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.over:
	default:
		p.exit = e
		close(p.over)
	}
}

// running is an error for a pod that takes no container any more.
func (p *pod) running() error {
	p.mu.Lock()
	stop := p.stop
	p.mu.Unlock()
	if stop {
		return fmt.Errorf("the pod stops: %w", errdefs.ErrFailedPrecondition)
	}
	select {
	case <-p.over:
		return fmt.Errorf("the pod's init has died: remove the pod: %w", errdefs.ErrFailedPrecondition)
	default:
		return nil
	}
}

// Pid implements sandbox.Processer: the init, or else the worker.
func (p *pod) Pid() uint32 {
	return p.pids()[0]
}

// pids are the processes that may stand for the pod in a spec, the one that
// does now first.
func (p *pod) pids() []uint32 {
	p.mu.Lock()
	first := p.first
	p.mu.Unlock()
	var pids []uint32
	if first != nil {
		pids = append(pids, uint32(first.Pid))
	}
	pids = append(pids, p.backend.Worker.Pids()...)
	if len(pids) == 0 {
		pids = append(pids, uint32(os.Getpid()))
	}
	return pids
}

// view is the pod as its containers see it. PID is empty.
func (p *pod) view() host.View {
	v := host.View{Net: p.ns.Net, Pids: p.pids(), Dir: p.dir, HostIPC: !p.ns.IPC}
	if p.ns.IPC {
		v.IPC = host.Pinned(p.dir, specs.IPCNamespace)
	}
	if p.ns.UTS {
		v.UTS = host.Pinned(p.dir, specs.UTSNamespace)
	}
	if p.ns.User != nil {
		v.User = host.Pinned(p.dir, specs.UserNamespace)
	}
	return v
}

// Prepare implements sandbox.Sandbox.
func (p *pod) Prepare(ctx context.Context, c *sandbox.Container) (_ sandbox.Bundle, err error) {
	ctx, span := trace.Start(ctx, "runc.prepare")
	defer span.End(&err)
	cgroup.Warm(warm)
	if err := check(c); err != nil {
		return sandbox.Bundle{}, fmt.Errorf("prepare container %s of pod %s: %w", c.ID, p.id, err)
	}
	opts, err := p.opts.task(c.Options, p.systemd)
	if err != nil {
		return sandbox.Bundle{}, fmt.Errorf("prepare container %s of pod %s: %w", c.ID, p.id, err)
	}
	if err := p.running(); err != nil {
		return sandbox.Bundle{}, fmt.Errorf("prepare container %s of pod %s: %w", c.ID, p.id, err)
	}
	v := p.view()
	if p.ns.PID != host.PIDHost && v.SharesPID(c.Spec) {
		// Though it should have been the pod's to say so from the start.
		if err := p.share(ctx); err != nil {
			return sandbox.Bundle{}, fmt.Errorf("prepare container %s of pod %s: %w", c.ID, p.id, err)
		}
		v.PID = host.Pinned(p.dir, specs.PIDNamespace)
	}
	v.Apply(c.Spec)
	if c.Spec.Linux == nil {
		c.Spec.Linux = &specs.Linux{}
	}
	c.Spec.Linux.CgroupsPath = host.Cgroup(c.Spec.Linux.CgroupsPath, c.ID, p.systemd)
	if err := v.Relabel(c.Spec.Linux.MountLabel); err != nil {
		return sandbox.Bundle{}, fmt.Errorf("prepare container %s of pod %s: %w", c.ID, p.id, err)
	}
	path, err := host.MakeBundle(ctx, p.dir, c.ID, c.Spec, c.Rootfs, p.ns.User)
	if err != nil {
		return sandbox.Bundle{}, fmt.Errorf("prepare container %s of pod %s: %w", c.ID, p.id, err)
	}
	return sandbox.Bundle{Path: path, Rootfs: c.Spec.Root.Path, Options: opts}, nil
}

// check finds what no container can be made of.
func check(c *sandbox.Container) error {
	switch {
	case c.Spec == nil:
		return invalid("it has no spec")
	case c.Spec.Process == nil:
		return invalid("its spec has no process: there is nothing to run")
	case c.Spec.Process.Terminal != c.IO.Terminal:
		// The agent goes by the request, libcontainer by the spec.
		return invalid("its spec says terminal=%t and its stdio says %t", c.Spec.Process.Terminal, c.IO.Terminal)
	}
	return nil
}

// Release implements sandbox.Sandbox.
func (p *pod) Release(_ context.Context, id string) error {
	if id == p.id {
		return invalid("release %s: it is the pod's own", id)
	}
	return host.RemoveBundle(p.dir, id)
}

// containers are the ids of what the pod has in the worker, or had or will
// have: a bundle comes before its container and goes after it.
func (p *pod) containers() ([]string, error) {
	ids, err := host.Bundles(p.dir)
	if err != nil {
		return nil, err
	}
	// The init last: with it all that shares its process ids goes.
	i := slices.Index(ids, p.id)
	if i >= 0 {
		ids = append(slices.Delete(ids, i, i+1), p.id)
	}
	return ids, nil
}
