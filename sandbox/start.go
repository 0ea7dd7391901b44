package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"github.com/containerd/containerd/api/events"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
)

var (
	fpStarting = failpoint.New("sandbox/start/recorded")
	fpStarted  = failpoint.New("sandbox/start/started")
	fpRunning  = failpoint.New("sandbox/start/running")
)

// Start starts a created sandbox. If it fails, nothing of the sandbox is left:
// the CRI plugin never calls Shutdown then. What cannot be removed is tried
// again when somebody creates a sandbox of the same name, and by the next
// daemon.
func (c *Controller) Start(ctx context.Context, id string) (_ core.ControllerInstance, err error) {
	ctx, span := c.trace(ctx, "sandbox.Start", id)
	defer span.End(&err)
	b, err := c.box(id)
	if err != nil {
		return core.ControllerInstance{}, err
	}
	end, err := b.begin(ctx)
	if err != nil {
		return core.ControllerInstance{}, err
	}
	defer end()
	switch state, _ := b.current(); state {
	case Created:
	case Deleted:
		return core.ControllerInstance{}, fmt.Errorf("sandbox %s was deleted meanwhile: %w", id, errdefs.ErrNotFound)
	default:
		return core.ControllerInstance{}, fmt.Errorf("sandbox %s is %s and cannot be started: %w", id, state, errdefs.ErrFailedPrecondition)
	}
	instance, err := c.start(ctx, b)
	if err != nil {
		return core.ControllerInstance{}, errors.Join(fmt.Errorf("start sandbox %s: %w", id, err), c.discard(ctx, b))
	}
	c.publish(ctx, b, topicStart, &events.SandboxStart{SandboxID: id})
	c.follow(b)
	return instance, nil
}

// start makes a created sandbox run.
func (c *Controller) start(ctx context.Context, b *box) (instance core.ControllerInstance, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	b.arm(cancel)
	defer func() {
		b.arm(nil)
		if err != nil && context.Cause(ctx) == errStopped && !errors.Is(err, errStopped) {
			err = fmt.Errorf("%w: %w", errStopped, err)
		}
		cancel(nil)
	}()
	if err := context.Cause(ctx); err != nil {
		return instance, err
	}
	_, sandbox := b.current()
	if err := b.enter(ctx, Starting); err != nil {
		return instance, err
	}
	fpStarting.Hit()
	if err := try(ctx, b.id, "start", sandbox.Start); err != nil {
		return instance, err
	}
	fpStarted.Hit()
	if err := context.Cause(ctx); err != nil {
		return instance, err
	}
	if instance, err = b.instance(ctx); err != nil {
		return instance, err
	}
	if err := b.enter(ctx, Running); err != nil {
		return instance, err
	}
	fpRunning.Hit()
	b.mu.Lock()
	b.plan = nil
	b.mu.Unlock()
	return instance, nil
}

// follow has a running sandbox watched to its end. The goroutine ends with the
// sandbox or the Controller.
func (c *Controller) follow(b *box) {
	_, sandbox := b.current()
	b.mu.Lock()
	b.watched = true
	b.mu.Unlock()
	c.run(func() {
		exit, err := attempt(c.life, b.id, "wait", func() (Exit, error) { return sandbox.Wait(c.life) })
		if c.life.Err() != nil {
			return // the daemon ends, not the sandbox
		}
		if err != nil {
			log.G(c.life).WithError(err).WithField(keySandbox, b.id).Error("sandbox cannot be followed and is taken for ended")
			exit = lost()
		}
		c.end(c.life, b, exit)
	})
}

// end is the one way to a sandbox's end.
func (c *Controller) end(ctx context.Context, b *box, exit Exit) {
	if b.finish(ctx, exit) {
		c.publish(ctx, b, topicExit, exited(b.id, exit))
	}
}

// instance is what Start returns.
func (b *box) instance(ctx context.Context) (core.ControllerInstance, error) {
	p, err := b.blueprint()
	if err != nil {
		return core.ControllerInstance{}, err
	}
	oci := b.oci(ctx, p)
	spec, err := json.Marshal(oci)
	if err != nil {
		return core.ControllerInstance{}, fmt.Errorf("encode its spec: %w", err)
	}
	address, version := b.endpoint(ctx)
	return core.ControllerInstance{
		SandboxID: b.id,
		Pid:       b.pid(ctx),
		CreatedAt: p.Spec.CreatedAt,
		Address:   address,
		Version:   version,
		Labels:    labels(p, oci),
		Spec:      &anypb.Any{TypeUrl: specType, Value: spec},
	}, nil
}

// labels replace those in containerd's store, so the ones that came in go out
// again, with those that the CRI plugin's own sandboxer sets (podsandbox).
func labels(p plan, oci *specs.Spec) map[string]string {
	all := map[string]string{}
	maps.Copy(all, p.Spec.Config.GetLabels())
	maps.Copy(all, p.Labels)
	all["oci_runtime_type"] = p.Runtime
	if oci.Process != nil && oci.Process.SelinuxLabel != "" {
		// CRI derives the labels of the pod's containers from it.
		all["selinux_label"] = oci.Process.SelinuxLabel
	}
	return all
}

// specType is how containerd's clients name an OCI spec (client.init in
// containerd's client package).
const specType = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

// oci is the sandbox's OCI spec, or the least that NRI reads.
func (b *box) oci(ctx context.Context, p plan) *specs.Spec {
	_, sandbox := b.current()
	if s, ok := sandbox.(Specer); ok {
		if spec := ask(ctx, b.id, "describe", s.OCI); spec != nil {
			return spec
		}
	}
	linux := &specs.Linux{CgroupsPath: p.Spec.Config.GetLinux().GetCgroupParent()}
	if p.Spec.NetNS != "" {
		linux.Namespaces = []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: p.Spec.NetNS}}
	}
	return &specs.Spec{Version: specs.Version, Hostname: p.Spec.Config.GetHostname(), Linux: linux}
}

// pid stands for the sandbox while it lives.
func (b *box) pid(ctx context.Context) uint32 {
	_, sandbox := b.current()
	p, ok := sandbox.(Processer)
	if !ok || b.over() {
		return 0
	}
	return ask(ctx, b.id, "find process", p.Pid)
}

func (b *box) endpoint(ctx context.Context) (address string, version uint32) {
	_, sandbox := b.current()
	e, ok := sandbox.(Endpointer)
	if !ok {
		return "", 0
	}
	_, _ = attempt(ctx, b.id, "find endpoint", func() (struct{}, error) {
		address, version = e.Endpoint()
		return struct{}{}, nil
	})
	return address, version
}
