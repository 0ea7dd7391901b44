package runc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/host"
)

var (
	fpCreateInit = failpoint.New("runc/init/create")
	fpSaveInit   = failpoint.New("runc/init/save")
	fpStartInit  = failpoint.New("runc/init/start")
)

// initial is the first process of the pod's process id namespace.
type initial struct {
	process
	file *os.File // pidfd, open for as long as it is followed
}

// making is a start of it that others may wait for.
type making struct {
	done chan struct{}
	err  error
}

// launchTime bounds the start of an init, which takes some 50 ms.
const launchTime = time.Minute

// share makes sure that the pod has an init. All callers of the time share one
// start.
func (p *pod) share(ctx context.Context) error {
	p.mu.Lock()
	m := p.making
	switch {
	case p.first != nil:
		p.mu.Unlock()
		return nil
	case p.stop:
		p.mu.Unlock()
		return fmt.Errorf("the pod stops: %w", errdefs.ErrFailedPrecondition)
	case m == nil:
		m = &making{done: make(chan struct{})}
		p.making = m
		go func() {
			// It is not its caller's alone.
			m.err = p.launch(context.WithoutCancel(ctx), true)
			p.mu.Lock()
			p.making = nil
			p.mu.Unlock()
			close(m.done)
		}()
	}
	p.mu.Unlock()
	select {
	case <-m.done:
		return m.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// launch runs the init and pins its namespaces. Unless it is to stay it then
// ends it. A caller that gives up gets what was begun undone: the worker would
// not notice, and go on making the container behind our back.
func (p *pod) launch(caller context.Context, stay bool) (err error) {
	ctx, span := trace.Start(context.WithoutCancel(caller), "runc.init")
	defer span.End(&err)
	ctx, cancel := context.WithTimeout(ctx, launchTime)
	defer cancel()
	ctx = namespaces.WithNamespace(ctx, p.namespace)
	program, err := p.backend.Worker.Program()
	if err != nil {
		return err
	}
	made, err := p.missing()
	if err != nil {
		return err
	}
	bundle, err := host.MakeBundle(ctx, p.dir, p.id, p.initSpec(program, made), initRootfs(p.ns.User), p.ns.User)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil || !stay {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
			defer cancel()
			err = errors.Join(err, p.discard(ctx))
		}
	}()
	opts, err := p.opts.task(nil, p.systemd)
	if err != nil {
		return err
	}
	agent, err := p.backend.Worker.Agent(ctx)
	if err != nil {
		return err
	}
	r, err := agent.Create(ctx, &taskapi.CreateTaskRequest{ID: p.id, Bundle: bundle, Options: opts})
	if err != nil {
		return fmt.Errorf("create init: %w", errgrpc.ToNative(err))
	}
	fpCreateInit.Hit()
	if err := caller.Err(); err != nil {
		return err
	}
	if stay {
		made = append(made, specs.PIDNamespace)
	}
	first, err := p.open(int(r.Pid), made)
	if err != nil {
		return fmt.Errorf("init: %w", err)
	}
	if !stay {
		first.file.Close()
		return nil
	}
	if err := p.follow(first); err != nil {
		first.file.Close()
		return err
	}
	if err := p.saved(ctx); err != nil {
		return err
	}
	fpSaveInit.Hit()
	if _, err := agent.Start(ctx, &taskapi.StartRequest{ID: p.id}); err != nil {
		return fmt.Errorf("start init: %w", errgrpc.ToNative(err))
	}
	fpStartInit.Hit()
	return nil
}

// missing are the namespaces that the init has to make.
func (p *pod) missing() ([]specs.LinuxNamespaceType, error) {
	var made []specs.LinuxNamespaceType
	for _, t := range p.pins() {
		ok, err := host.IsPinned(p.dir, t)
		if err != nil {
			return nil, err
		}
		if !ok {
			made = append(made, t)
		}
	}
	return made, nil
}

// open pins namespaces of the init while it surely lives.
func (p *pod) open(pid int, pin []specs.LinuxNamespaceType) (*initial, error) {
	start, err := pidfd.StartTime(pid)
	if err != nil {
		return nil, err
	}
	f, err := pidfd.Open(pid, start)
	if err != nil {
		return nil, err
	}
	err = host.PinProcess(p.dir, pid, pin...)
	if err == nil {
		err = pidfd.Signal(f, 0) // the pid was its own all the time
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &initial{process: process{Pid: pid, Start: start}, file: f}, nil
}

// follow takes over the init: when it dies the pod is over.
func (p *pod) follow(first *initial) error {
	p.mu.Lock()
	p.first = first
	p.mu.Unlock()
	return p.backend.Worker.Reaper().Follow(first.file, func(e pidfd.Exit) {
		first.file.Close()
		p.end(sandbox.Exit{Status: e.Status, At: e.At})
	})
}

// discard ends the init and removes its container.
func (p *pod) discard(ctx context.Context) error {
	p.mu.Lock()
	first := p.first
	p.first = nil
	p.mu.Unlock()
	if first != nil {
		p.backend.Worker.Reaper().Unfollow(first.file)
		first.file.Close()
	}
	return errors.Join(p.tenants().End(ctx, p.id), p.tenants().Remove(ctx, p.id))
}

// initRootfs is an empty directory that root in the pod's user namespace may
// write to.
func initRootfs(user *host.IDMap) []mount.Mount {
	uid, gid := user.Root()
	return []mount.Mount{{Type: "tmpfs", Source: "tmpfs", Options: []string{
		"nosuid", "size=64k", "mode=755", fmt.Sprintf("uid=%d", uid), fmt.Sprintf("gid=%d", gid),
	}}}
}

// initSpec is a container that has nothing but its program. made are the
// namespaces that it makes; the pod's others it joins.
func (p *pod) initSpec(program string, made []specs.LinuxNamespaceType) *specs.Spec {
	v := p.view()
	paths := []specs.LinuxNamespace{
		{Type: specs.IPCNamespace, Path: v.IPC},
		{Type: specs.UTSNamespace, Path: v.UTS},
		{Type: specs.UserNamespace, Path: v.User},
		{Type: specs.NetworkNamespace, Path: v.Net},
	}
	linux := &specs.Linux{
		Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}},
		CgroupsPath: host.Cgroup(p.cgroup(), p.id, p.systemd),
	}
	s := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: []string{"/kuasar-task", "pause"}, Cwd: "/",
			NoNewPrivileges: true, Capabilities: &specs.LinuxCapabilities{},
			// No SELinux label: a container's may not execute the host's files.
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/kuasar-task", Type: "bind", Source: program, Options: []string{"bind", "ro"}},
		},
		Linux: linux,
	}
	for _, ns := range paths {
		if ns.Path == "" {
			continue // the host's
		}
		for _, t := range made {
			if t == ns.Type {
				ns.Path = ""
				p.furnish(s, t)
			}
		}
		linux.Namespaces = append(linux.Namespaces, ns)
	}
	return s
}

// furnish sets what belongs to a namespace that the init makes.
func (p *pod) furnish(s *specs.Spec, t specs.LinuxNamespaceType) {
	set := func(sysctls map[string]string) {
		if s.Linux.Sysctl == nil {
			s.Linux.Sysctl = map[string]string{}
		}
		for k, v := range sysctls {
			s.Linux.Sysctl[k] = v
		}
	}
	switch t {
	case specs.UserNamespace:
		s.Linux.UIDMappings = []specs.LinuxIDMapping{p.ns.User.UID}
		s.Linux.GIDMappings = []specs.LinuxIDMapping{p.ns.User.GID}
	case specs.IPCNamespace:
		set(p.ns.Sysctls.IPC)
	case specs.UTSNamespace:
		s.Hostname = p.ns.Hostname
		set(p.ns.Sysctls.UTS)
		set(p.ns.Sysctls.Net) // nobody has set these yet either
	}
}
