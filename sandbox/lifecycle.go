package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
)

// cleanupTimeout bounds what is undone after a failed or canceled call.
const cleanupTimeout = 30 * time.Second

// Start starts a created sandbox. If it fails, nothing of the sandbox is left:
// the CRI plugin never calls Shutdown then.
func (c *Controller) Start(ctx context.Context, id string) (core.ControllerInstance, error) {
	b, err := c.box(id)
	if err != nil {
		return core.ControllerInstance{}, err
	}
	end, err := b.begin(ctx)
	if err != nil {
		return core.ControllerInstance{}, err
	}
	defer end()
	if err := c.start(ctx, b); err != nil {
		if errdefs.IsFailedPrecondition(err) && !b.starting() {
			return core.ControllerInstance{}, err
		}
		return core.ControllerInstance{}, errors.Join(fmt.Errorf("start sandbox %s: %w", id, err), c.discard(ctx, b))
	}
	return b.instance()
}

func (b *box) starting() bool {
	state, _ := b.current()
	return state == Starting
}

func (c *Controller) start(ctx context.Context, b *box) error {
	state, sandbox := b.current()
	if state != Created {
		return fmt.Errorf("sandbox %s is %s and cannot be started: %w", b.spec.ID, state, errdefs.ErrFailedPrecondition)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	b.mu.Lock()
	b.cancel = cancel
	b.mu.Unlock()
	if err := b.enter(ctx, Starting); err != nil {
		return err
	}
	if err := guard("start", b.spec.ID, func() error { return sandbox.Start(ctx) }); err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("stopped while it started: %w", err)
	}
	if err := b.enter(ctx, Running); err != nil {
		return err
	}
	go b.watch(c.life, sandbox)
	return nil
}

// discard removes all of a sandbox whose start failed.
func (c *Controller) discard(ctx context.Context, b *box) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	return errors.Join(c.end(ctx, b), c.delete(ctx, b))
}

// Stop ends the sandbox and everything in it. Idempotent; it cancels a Start
// that is under way.
func (c *Controller) Stop(ctx context.Context, id string, opts ...core.StopOpt) error {
	b, err := c.box(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	var o core.StopOptions
	for _, opt := range opts {
		opt(&o)
	}
	if o.Timeout != nil && *o.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *o.Timeout)
		defer cancel()
	}
	b.interrupt()
	end, err := b.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	return c.end(ctx, b)
}

// interrupt cancels a Start.
func (b *box) interrupt() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cancel != nil {
		b.cancel()
	}
}

// end stops a sandbox whose turn it is.
func (c *Controller) end(ctx context.Context, b *box) error {
	state, sandbox := b.current()
	if sandbox == nil || state == Deleting {
		return nil
	}
	if err := guard("stop", b.spec.ID, func() error { return sandbox.Stop(ctx) }); err != nil {
		return fmt.Errorf("stop sandbox %s: %w", b.spec.ID, err)
	}
	b.end(Exit{At: time.Now()})
	return b.enter(ctx, Stopped)
}

// Shutdown stops the sandbox if it runs, and removes everything of it. It is
// idempotent. A quarantined sandbox keeps its processes, mounts and
// directory, which nobody understood: only the Controller forgets it.
func (c *Controller) Shutdown(ctx context.Context, id string) error {
	b, err := c.box(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	b.interrupt()
	end, err := b.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if state, _ := b.current(); state == Quarantined {
		c.forget(b)
		return nil
	}
	if err := c.end(ctx, b); err != nil {
		return err
	}
	return c.delete(ctx, b)
}

// delete removes a stopped sandbox.
func (c *Controller) delete(ctx context.Context, b *box) error {
	_, sandbox := b.current()
	if err := b.enter(ctx, Deleting); err != nil {
		return err
	}
	if err := guard("delete", b.spec.ID, func() error { return sandbox.Delete(ctx) }); err != nil {
		return fmt.Errorf("delete sandbox %s: %w", b.spec.ID, err)
	}
	if err := b.remove(); err != nil {
		return err
	}
	c.forget(b)
	return nil
}

// instance is what Start returns. Its labels replace those in containerd's
// store, so the ones that came in go out again.
func (b *box) instance() (core.ControllerInstance, error) {
	_, sandbox := b.current()
	labels := maps.Clone(b.meta.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	for k, v := range b.spec.Config.GetLabels() {
		if _, taken := labels[k]; !taken {
			labels[k] = v
		}
	}
	labels["oci_runtime_type"] = b.meta.Runtime
	oci := describe(sandbox, b.spec)
	if oci.Process != nil && oci.Process.SelinuxLabel != "" {
		// CRI derives the labels of the pod's containers from it.
		labels["selinux_label"] = oci.Process.SelinuxLabel
	}
	spec, err := json.Marshal(oci)
	if err != nil {
		return core.ControllerInstance{}, fmt.Errorf("describe sandbox %s: %w", b.spec.ID, err)
	}
	return core.ControllerInstance{
		SandboxID: b.spec.ID,
		Pid:       pid(sandbox),
		CreatedAt: b.spec.CreatedAt,
		Labels:    labels,
		Spec:      &anypb.Any{TypeUrl: specType, Value: spec},
	}, nil
}

// specType is how containerd's clients name an OCI spec (client.init in
// containerd's client package).
const specType = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

// describe returns the sandbox's OCI spec, or the least that NRI reads.
func describe(sandbox Sandbox, spec Spec) *specs.Spec {
	if s, ok := sandbox.(Specer); ok {
		return s.OCI()
	}
	linux := &specs.Linux{CgroupsPath: spec.Config.GetLinux().GetCgroupParent()}
	if spec.NetNS != "" {
		linux.Namespaces = []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: spec.NetNS}}
	}
	return &specs.Spec{Version: specs.Version, Hostname: spec.Config.GetHostname(), Linux: linux}
}

func pid(sandbox Sandbox) uint32 {
	if p, ok := sandbox.(Processer); ok {
		return p.Pid()
	}
	return 0
}
