package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/netns"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Keys of a verbose status.
const (
	infoKey   = "info"   // what crictl and the CRI plugin read
	reasonKey = "reason" // why a sandbox is quarantined, or why there is no more
)

// Status answers at any time, also while the sandbox starts.
func (c *Controller) Status(ctx context.Context, id string, verbose bool) (core.ControllerStatus, error) {
	b, err := c.box(id)
	if err != nil {
		return core.ControllerStatus{}, err
	}
	b.mu.Lock()
	state, reason := b.state, b.reason
	status := core.ControllerStatus{
		SandboxID: id,
		State:     state.cri(),
		CreatedAt: b.createdAt,
		ExitedAt:  b.exit.At,
	}
	b.mu.Unlock()
	status.Pid = b.pid(ctx)
	status.Address, status.Version = b.endpoint(ctx)
	if !verbose {
		return status, nil
	}
	info, err := b.describe(ctx, state)
	status.Info = map[string]string{infoKey: string(info)}
	if reason == "" && err != nil {
		reason = err.Error()
	}
	if reason != "" {
		status.Info[reasonKey] = reason
	}
	return status, nil
}

// info has the shape that crictl and the CRI plugin expect of a verbose status
// (internal/cri/server/podsandbox/types.SandboxInfo). The CRI plugin drops
// whatever it does not know.
type info struct {
	Pid         uint32                      `json:"pid"`
	Status      string                      `json:"processStatus"`
	NetNSClosed bool                        `json:"netNamespaceClosed"`
	RuntimeType string                      `json:"runtimeType"`
	Options     string                      `json:"runtimeOptions,omitempty"`
	Config      *runtime.PodSandboxConfig   `json:"config"`
	Spec        *specs.Spec                 `json:"runtimeSpec"`
	CNI         json.RawMessage             `json:"cniResult,omitempty"`
	Metadata    json.RawMessage             `json:"sandboxMetadata,omitempty"`
	Overhead    *runtime.ContainerResources `json:"overhead,omitempty"`
	Resources   *runtime.ContainerResources `json:"resources,omitempty"`
}

// describe is the verbose status: with an error, what there is of it.
func (b *box) describe(ctx context.Context, state State) (json.RawMessage, error) {
	i := info{Pid: b.pid(ctx), Status: string(state)}
	p, err := b.blueprint()
	if err == nil {
		i.RuntimeType, i.Options = p.Runtime, string(p.Spec.Options.TOML)
		i.Config, i.Metadata, i.CNI = p.Spec.Config, p.CRI, cniResult(p.CRI)
		i.NetNSClosed = closed(p.Spec.NetNS)
		i.Spec = b.oci(ctx, p)
	}
	b.mu.Lock()
	if r := b.resources; r != nil {
		i.Overhead, i.Resources = &runtime.ContainerResources{Linux: r.Overhead}, &runtime.ContainerResources{Linux: r.Resources}
	}
	b.mu.Unlock()
	text, badText := json.Marshal(i)
	return text, errors.Join(err, badText)
}

// cniResult is in the CRI plugin's own record of a sandbox (versionedMetadata
// of internal/cri/store/sandbox).
func cniResult(record json.RawMessage) json.RawMessage {
	var r struct {
		Metadata struct{ CNIResult json.RawMessage }
	}
	if json.Unmarshal(record, &r) != nil {
		return nil
	}
	return r.Metadata.CNIResult
}

// closed says whether a network namespace was and is no more.
func closed(path string) bool {
	if path == "" {
		return false
	}
	closed, err := netns.LoadNetNS(path).Closed()
	return err == nil && closed
}

// Wait blocks until the sandbox has ended. It does not return for one that is
// quarantined, which may be alive.
func (c *Controller) Wait(ctx context.Context, id string) (core.ExitStatus, error) {
	b, err := c.box(id)
	if err != nil {
		return core.ExitStatus{}, err
	}
	select {
	case <-b.done:
	case <-ctx.Done():
		return core.ExitStatus{}, fmt.Errorf("wait for sandbox %s: %w", id, ctx.Err())
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return core.ExitStatus{ExitStatus: b.exit.Status, ExitedAt: b.exit.At}, nil
}

// Platform is what the sandbox's containers run on.
func (c *Controller) Platform(ctx context.Context, id string) (imagespec.Platform, error) {
	b, err := c.box(id)
	if err != nil {
		return imagespec.Platform{}, err
	}
	_, sandbox := b.current()
	p, ok := sandbox.(Platformer)
	if !ok {
		return platforms.DefaultSpec(), nil
	}
	platform, err := attempt(ctx, id, "find platform", func() (imagespec.Platform, error) { return p.Platform(), nil })
	if err != nil {
		return imagespec.Platform{}, fmt.Errorf("platform of sandbox %s: %w", id, err)
	}
	if platform.OS == "" || platform.Architecture == "" {
		return imagespec.Platform{}, fmt.Errorf("platform of sandbox %s: its backend says %q on %q: %w", id, platform.OS, platform.Architecture, errdefs.ErrInternal)
	}
	return platform, nil
}
