package tasks

import (
	"context"
	"strings"

	apitypes "github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// runtimeType is how the runtime types of our handlers begin.
const runtimeType = "io.containerd.kuasar."

// informer tells about a runtime, as the introspection service asks.
type informer interface {
	PluginInfo(ctx context.Context, request any) (any, error)
}

// PluginInfo says what our handlers can do. There is no runtime binary to ask:
// libcontainer is in the agent.
func (r *Runtime) PluginInfo(ctx context.Context, request any) (any, error) {
	req, ok := request.(*apitypes.RuntimeRequest)
	if !ok || !strings.HasPrefix(req.RuntimePath, runtimeType) {
		return r.cfg.Stock.PluginInfo(ctx, request)
	}
	f, err := typeurl.MarshalAnyToProto(abilities())
	if err != nil {
		return nil, err
	}
	return &apitypes.RuntimeInfo{
		Name:     req.RuntimePath,
		Version:  &apitypes.RuntimeVersion{Version: version.Version, Revision: version.Revision},
		Options:  req.Options,
		Features: f,
	}, nil
}

// abilities is what libcontainer says of itself in `runc features`, as far as
// clients read it.
func abilities() *features.Features {
	yes := true
	return &features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: specs.Version,
		MountOptions: []string{
			"bind", "rbind", "ro", "rw", "rro", "rrw", "nosuid", "rnosuid", "nodev", "rnodev", "noexec", "rnoexec",
			"private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable", "idmap", "ridmap", "tmpcopyup",
		},
		Linux: &features.Linux{
			Namespaces:      []string{"cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"},
			Cgroup:          &features.Cgroup{V1: &yes, V2: &yes, Systemd: &yes, SystemdUser: &yes, Rdma: &yes},
			Seccomp:         &features.Seccomp{Enabled: &yes},
			Apparmor:        &features.Apparmor{Enabled: &yes},
			Selinux:         &features.Selinux{Enabled: &yes},
			IntelRdt:        &features.IntelRdt{Enabled: &yes},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &yes}},
		},
	}
}
