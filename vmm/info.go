package vmm

import (
	"context"
	"fmt"

	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/task/stats"
)

var (
	_ sandbox.Killer    = (*pod)(nil)
	_ sandbox.Processer = (*pod)(nil)
	_ sandbox.Specer    = (*pod)(nil)
	_ sandbox.Statser   = (*pod)(nil)
	_ sandbox.Streamer  = (*pod)(nil)
	_ sandbox.Updater   = (*pod)(nil)
)

// OCI implements sandbox.Specer: the machine as a container of this host. The
// pod's containers have their namespaces in the guest.
func (p *pod) OCI() *specs.Spec {
	s := &specs.Spec{Version: specs.Version, Linux: &specs.Linux{CgroupsPath: p.group}}
	if p.netns != "" {
		s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: p.netns}}
	}
	return s
}

// Stats implements sandbox.Statser: what the machine costs this host, with its
// helpers. They are read from the kernel at each call.
func (p *pod) Stats(context.Context) (typeurl.Any, error) {
	m, err := stats.Pod(p.group)
	if err != nil {
		return nil, fmt.Errorf("stats of pod %s: %w", p.id, err)
	}
	return m, nil
}
