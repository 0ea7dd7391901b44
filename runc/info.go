package runc

import (
	"context"
	"fmt"

	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/host"
)

var (
	_ sandbox.Processer = (*pod)(nil)
	_ sandbox.Specer    = (*pod)(nil)
	_ sandbox.Statser   = (*pod)(nil)
	_ sandbox.Updater   = (*pod)(nil)
)

// OCI implements sandbox.Specer: what a pause container's spec would tell.
// Process.SelinuxLabel is the label that CRI derives the containers' from.
func (p *pod) OCI() *specs.Spec {
	v := p.view()
	s := &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{SelinuxLabel: p.processLabel()},
		Linux:   &specs.Linux{CgroupsPath: p.cgroup()},
	}
	for _, ns := range []specs.LinuxNamespace{
		{Type: specs.NetworkNamespace, Path: v.Net},
		{Type: specs.IPCNamespace, Path: v.IPC},
		{Type: specs.UTSNamespace, Path: v.UTS},
		{Type: specs.UserNamespace, Path: v.User},
	} {
		if ns.Path != "" {
			s.Linux.Namespaces = append(s.Linux.Namespaces, ns)
		}
	}
	if p.ns.PID == host.PIDPod {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{
			Type: specs.PIDNamespace, Path: host.Pinned(p.dir, specs.PIDNamespace),
		})
	}
	if u := p.ns.User; u != nil {
		s.Linux.UIDMappings = []specs.LinuxIDMapping{u.UID}
		s.Linux.GIDMappings = []specs.LinuxIDMapping{u.GID}
	}
	return s
}

// cgroup is the sandbox's own below the pod's; only an init would be in it.
func (p *pod) cgroup() string {
	if p.parent == "" {
		return ""
	}
	return host.CgroupPath(p.parent, p.id)
}

func (p *pod) processLabel() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.label
}

// Stats implements sandbox.Statser. They are read from the kernel at each
// call, which takes well under a millisecond and blocks on nothing.
func (p *pod) Stats(context.Context) (typeurl.Any, error) {
	m, err := host.Stats(p.parent)
	if err != nil {
		return nil, fmt.Errorf("stats of pod %s: %w", p.id, err)
	}
	return m, nil
}

// Update implements sandbox.Updater. The pod's limits are those of its cgroup,
// which is the kubelet's: it has changed them before it tells us, and the
// containers' it changes one by one. So there is nothing to do, and that is
// success.
func (p *pod) Update(context.Context, sandbox.Resources) error { return nil }
