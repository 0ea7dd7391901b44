package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/containerd/containerd/api/types"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/containerd/typeurl/v2"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/timestamppb"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// metricsTimeout bounds a sandbox's Stats: the CRI plugin asks all sandboxes
// one after the other, each second.
const metricsTimeout = time.Second

// Status answers at any time, also while the sandbox starts.
func (c *Controller) Status(_ context.Context, id string, verbose bool) (core.ControllerStatus, error) {
	b, err := c.box(id)
	if err != nil {
		return core.ControllerStatus{}, err
	}
	b.mu.Lock()
	state, sandbox, exit, reason := b.state, b.sandbox, b.exit, b.reason
	b.mu.Unlock()
	status := core.ControllerStatus{
		SandboxID: id,
		Pid:       pid(sandbox),
		State:     state.cri(),
		CreatedAt: b.spec.CreatedAt,
		ExitedAt:  exit.At,
	}
	if verbose {
		if status.Info, err = b.info(state, sandbox, reason); err != nil {
			return core.ControllerStatus{}, fmt.Errorf("describe sandbox %s: %w", id, err)
		}
	}
	return status, nil
}

// info has the shape that crictl and the CRI plugin expect of a verbose status
// (internal/cri/server/podsandbox/types.SandboxInfo).
func (b *box) info(state State, sandbox Sandbox, reason string) (map[string]string, error) {
	info := struct {
		Pid         uint32                    `json:"pid"`
		Status      string                    `json:"processStatus"`
		RuntimeType string                    `json:"runtimeType"`
		Options     string                    `json:"runtimeOptions,omitempty"`
		Config      *runtime.PodSandboxConfig `json:"config"`
		Spec        *specs.Spec               `json:"runtimeSpec,omitempty"`
		Metadata    json.RawMessage           `json:"sandboxMetadata,omitempty"`
	}{
		Pid:         pid(sandbox),
		Status:      string(state),
		RuntimeType: b.meta.Runtime,
		Options:     string(b.spec.Options.TOML),
		Config:      b.spec.Config,
		Metadata:    b.meta.CRI,
	}
	if sandbox != nil {
		info.Spec = describe(sandbox, b.spec)
	}
	text, err := json.Marshal(info)
	if err != nil {
		return nil, err
	}
	all := map[string]string{"info": string(text)}
	if reason != "" {
		all["reason"] = reason
	}
	return all, nil
}

// Wait blocks until the sandbox has ended.
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
func (c *Controller) Platform(_ context.Context, id string) (imagespec.Platform, error) {
	b, err := c.box(id)
	if err != nil {
		return imagespec.Platform{}, err
	}
	if _, sandbox := b.current(); sandbox != nil {
		if p, ok := sandbox.(Platformer); ok {
			return p.Platform(), nil
		}
	}
	return platforms.DefaultSpec(), nil
}

// Metrics returns the pod's own metrics.
func (c *Controller) Metrics(ctx context.Context, id string) (*types.Metric, error) {
	b, err := c.box(id)
	if err != nil {
		return nil, err
	}
	_, sandbox := b.current()
	s, ok := sandbox.(Statser)
	if !ok {
		return nil, fmt.Errorf("metrics of sandbox %s: sandboxer %s has none: %w", id, c.cfg.Name, errdefs.ErrNotImplemented)
	}
	ctx, cancel := context.WithTimeout(ctx, metricsTimeout)
	defer cancel()
	var data typeurl.Any
	if err := guard("measure", id, func() error { data, err = s.Stats(ctx); return err }); err != nil {
		return nil, fmt.Errorf("metrics of sandbox %s: %w", id, err)
	}
	return &types.Metric{Timestamp: timestamppb.Now(), ID: id, Data: typeurl.MarshalProto(data)}, nil
}

// updatedResources is the extension that carries UpdatePodSandboxResources
// (internal/cri/server/podsandbox.UpdatedResourcesKey).
const updatedResources = "updated-resources"

// Update resizes a running sandbox; nothing else of it can be updated.
func (c *Controller) Update(ctx context.Context, id string, info core.Sandbox, _ ...string) error {
	b, err := c.box(id)
	if err != nil {
		return err
	}
	ext := info.Extensions[updatedResources]
	if ext == nil {
		return nil
	}
	var r Resources
	if err := json.Unmarshal(ext.GetValue(), &r); err != nil {
		return fmt.Errorf("update sandbox %s: decode resources: %w: %w", id, err, errdefs.ErrInvalidArgument)
	}
	end, err := b.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	state, sandbox := b.current()
	u, ok := sandbox.(Updater)
	if !ok {
		return fmt.Errorf("update sandbox %s: sandboxer %s cannot resize: %w", id, c.cfg.Name, errdefs.ErrNotImplemented)
	}
	if state != Running {
		return fmt.Errorf("update sandbox %s: it is %s: %w", id, state, errdefs.ErrFailedPrecondition)
	}
	if err := guard("update", id, func() error { return u.Update(ctx, r) }); err != nil {
		return fmt.Errorf("update sandbox %s: %w", id, err)
	}
	return b.save(ctx)
}
