package vmm

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/host"
)

// Backend implements sandbox.Backend.
type Backend struct {
	// Drivers by the name that the option hypervisor has.
	Drivers map[string]Driver

	// Defaults are the options of a handler that sets none.
	Defaults Options

	// Reaper follows the pods' processes, which are children of this daemon or
	// were of an earlier one.
	Reaper *pidfd.Reaper

	// Prove says whether KVM boots a guest here, for Auto. It may take some
	// seconds the first time; nil is no.
	Prove func(ctx context.Context, c Config) bool

	// Templates are what pods are cloned from; nil if all boot.
	Templates *Templates

	hub    hub
	asRoot sync.Once // tells why machines' processes are root
}

var (
	_ sandbox.Backend = (*Backend)(nil)
	_ io.Closer       = (*Backend)(nil)
)

// Close gives up what is done in the background. Pods run on.
func (b *Backend) Close() error {
	if b.Templates == nil {
		return nil
	}
	return b.Templates.Close()
}

// Create implements sandbox.Backend.
func (b *Backend) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	p, err := b.create(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("create pod %s: %w", spec.ID, err)
	}
	return p, nil
}

func (b *Backend) create(ctx context.Context, spec sandbox.Spec) (*pod, error) {
	p := b.pod(spec)
	var err error
	if p.opts, err = parse(spec.Options.TOML, spec.Config.GetAnnotations(), b.Defaults); err != nil {
		return nil, err
	}
	if p.driver, err = b.driver(p.opts.Hypervisor); err != nil {
		return nil, err
	}
	p.config = spec.Config
	return p, p.plan(ctx)
}

func (b *Backend) driver(hypervisor string) (Driver, error) {
	d, ok := b.Drivers[hypervisor]
	if !ok {
		return nil, invalid("hypervisor = %q: there are %s", hypervisor, list(slices.Sorted(maps.Keys(b.Drivers))))
	}
	return d, nil
}

func (b *Backend) pod(spec sandbox.Spec) *pod {
	group := ""
	if parent := spec.Config.GetLinux().GetCgroupParent(); parent != "" {
		group = host.CgroupPath(parent, spec.ID)
	}
	life, finish := context.WithCancel(context.Background())
	return &pod{
		backend: b, id: spec.ID, dir: spec.Dir, vm: filepath.Join(spec.Dir, vmDir), netns: spec.NetNS,
		group: host.Cgroup(group, spec.ID, false), saved: spec.Saved,
		life: life, over: life.Done(), finish: finish, dialing: make(chan struct{}, 1),
		procs: map[string]*proc{}, state: state{Processes: map[string]Process{}},
	}
}

// plan checks what the pod asks for, and sizes its machine.
func (p *pod) plan(ctx context.Context) error {
	linux := p.config.GetLinux()
	ns := linux.GetSecurityContext().GetNamespaceOptions()
	for what, mode := range map[string]runtime.NamespaceMode{"network": ns.GetNetwork(), "ipc": ns.GetIpc(), "pid": ns.GetPid()} {
		if mode == runtime.NamespaceMode_NODE {
			return invalid("the pod asks for the host's %s namespace: a virtual machine has its own: leave that out, or use another runtime handler", what)
		}
	}
	if ns.GetUsernsOptions() != nil && ns.GetUsernsOptions().GetMode() != runtime.NamespaceMode_NODE {
		return invalid("the pod asks for a user namespace (hostUsers: false): the users of a virtual machine are not the host's anyway: leave that out, or use another runtime handler")
	}
	r := linux.GetResources()
	cpus, memory, err := p.opts.size(limits{memory: r.GetMemoryLimitInBytes(), quota: r.GetCpuQuota(), period: r.GetCpuPeriod()})
	if err != nil {
		return err
	}
	p.pooled = p.opts.Pool > 0 && p.usual(cpus, memory)
	p.state.Hypervisor, p.state.Accel = p.opts.Hypervisor, p.opts.Accel
	p.state.CPUs, p.state.Memory, p.state.Slots = cpus, memory, p.opts.Slots
	p.state.Overhead = p.opts.Overhead
	p.state.MaxCPUs, p.state.MaxMemory = max(cpus, p.opts.MaxVCPUs), max(memory, p.opts.MaxMemory)
	if p.opts.Debug {
		p.state.Key = newKey()
	}
	if err := p.find(); err != nil {
		return err
	}
	return p.driver.Check(ctx, p.machine())
}

// usual says whether the pod's machine is that of a pod without limits, which
// sets no option itself.
func (p *pod) usual(cpus uint32, memory uint64) bool {
	for name := range p.config.GetAnnotations() {
		if strings.HasPrefix(name, Annotation) {
			return false
		}
	}
	c, m, err := p.opts.size(limits{})
	return err == nil && c == cpus && m == memory
}

// find looks for what the machine needs of this host, so that it is not a
// failed start that tells what is missing.
func (p *pod) find() error {
	for _, part := range p.opts.Parts(p.driver.Needs()) {
		if part.Err != nil {
			return part.Err
		}
	}
	return nil
}

// machine is the pod's without what is open: files and processes.
func (p *pod) machine() Config {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Config{
		ID: p.id, Dir: p.vm,
		VMM: p.opts.Path, Machine: p.opts.Machine, Accel: p.state.Accel,
		Kernel: p.opts.Kernel, Initrd: p.opts.Initrd, Cmdline: p.opts.KernelParams,
		CPUs: p.state.CPUs, Memory: p.state.Memory, Slots: p.state.Slots,
		MaxCPUs: p.state.MaxCPUs, MaxMemory: p.state.MaxMemory,
		FreePageReporting: p.opts.FreePageReporting,
	}
}

// Restore implements sandbox.Backend. The pod runs if its VMM and helpers do,
// whatever its handler's options are by now.
func (b *Backend) Restore(ctx context.Context, spec sandbox.Spec, saved json.RawMessage) (sandbox.Sandbox, error) {
	p := b.pod(spec)
	if len(saved) > 0 {
		if err := json.Unmarshal(saved, &p.state); err != nil {
			return nil, fmt.Errorf("restore pod %s: %w: %w", spec.ID, err, errdefs.ErrDataLoss)
		}
	}
	if p.state.Boot != record.Boot() {
		p.end(unknown())
		return p, nil
	}
	if err := p.reopen(ctx); err != nil {
		return nil, fmt.Errorf("restore pod %s: %w", spec.ID, err)
	}
	return p, nil
}

// reopen takes up the processes of an earlier daemon's pod. What is missing ends
// the others.
func (p *pod) reopen(ctx context.Context) error {
	lives := p.state.Started
	for role, q := range p.state.Processes {
		err := p.take(role, q)
		if errdefs.IsNotFound(err) {
			lives = false
			continue
		}
		if err != nil {
			p.leave()
			return fmt.Errorf("%s: %w", role, err)
		}
	}
	switch {
	case p.state.Stopped:
		p.fell()
		p.end(sandbox.Exit{At: time.Now()})
		return nil
	case !lives:
		p.fell()
		p.end(unknown())
		return nil
	}
	p.transport = p.link()
	var err error
	if p.driver, err = p.backend.driver(p.state.Hypervisor); err == nil {
		p.control, err = p.driver.Attach(ctx, p.machine())
	}
	if err != nil {
		p.leave()
		return err
	}
	select {
	case <-p.over: // meanwhile, and not all were known then
		p.fell()
	default:
		p.offer()
		p.heed()
	}
	return nil
}

// unknown is the end of a pod that nobody saw.
func unknown() sandbox.Exit { return sandbox.Exit{Status: pidfd.UnknownStatus, At: time.Now()} }
