package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/api/events"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
)

var (
	fpDirectory = failpoint.New("sandbox/create/directory")
	fpState     = failpoint.New("sandbox/create/state")
	fpPlan      = failpoint.New("sandbox/create/plan")
	fpCreated   = failpoint.New("sandbox/create/created")
)

const (
	// metadataKey is the extension in which the CRI plugin keeps its own record
	// of a sandbox (internal/cri/server/podsandbox.MetadataKey).
	metadataKey = "metadata"

	// nameLabel is how the CRI plugin stores a pod's name (sandbox_run.go).
	nameLabel = "name"

	// RuntimeType is the runtime_type of a handler that has options for us:
	// the CRI plugin decodes those of runc itself.
	RuntimeType = "io.containerd.kuasar.v1"
)

// Create checks what the sandbox shall be and makes its directory and records.
func (c *Controller) Create(ctx context.Context, info core.Sandbox, opts ...core.CreateOpt) (err error) {
	ctx, span := c.trace(ctx, "sandbox.Create", info.ID)
	defer span.End(&err)
	p, err := c.describe(ctx, info, opts)
	if err != nil {
		return fmt.Errorf("create sandbox %s: %w", info.ID, err)
	}
	span.Set(trace.Pod, p.Spec.podName())
	b := newBox(p.Spec.ID, p.Spec.Dir, Created)
	p.Spec.Saved = b.save
	b.plan = &p
	b.identify(p.Spec)
	end, err := b.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if err := c.admit(ctx, b); err != nil {
		return fmt.Errorf("create sandbox %s: %w", info.ID, err)
	}
	if err := c.create(ctx, b, &p); err != nil {
		return errors.Join(fmt.Errorf("create sandbox %s: %w", info.ID, err), c.discard(ctx, b))
	}
	c.publish(ctx, b, topicCreate, &events.SandboxCreate{SandboxID: b.id})
	return nil
}

func (c *Controller) create(ctx context.Context, b *box, p *plan) error {
	if err := os.Mkdir(b.dir, 0o711); err != nil {
		return err
	}
	fpDirectory.Hit()
	if err := b.enter(ctx, Created); err != nil {
		return err
	}
	fpState.Hit()
	if err := record.Write(b.path(planFile), p); err != nil {
		return err
	}
	fpPlan.Hit()
	sandbox, err := attempt(ctx, b.id, "create", func() (Sandbox, error) { return c.cfg.Backend.Create(ctx, p.Spec) })
	if err != nil {
		return err
	}
	if sandbox == nil {
		return fmt.Errorf("its backend made none: %w", errdefs.ErrInternal)
	}
	b.become(sandbox)
	fpCreated.Hit()
	return nil
}

// describe finds out what is asked for. It touches nothing.
func (c *Controller) describe(ctx context.Context, info core.Sandbox, opts []core.CreateOpt) (plan, error) {
	var o core.CreateOptions
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return plan{}, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	if err := identifiers.Validate(info.ID); err != nil {
		return plan{}, err
	}
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return plan{}, err
	}
	if len(o.Rootfs) > 0 {
		return plan{}, fmt.Errorf("a root file system for the sandbox itself: containers bring their own: %w", errdefs.ErrNotImplemented)
	}
	config, err := podConfig(o)
	if err != nil {
		return plan{}, err
	}
	options, err := handlerOptions(info.Runtime.Options)
	if err != nil {
		return plan{}, err
	}
	p := plan{
		Spec: Spec{
			ID:        info.ID,
			Namespace: namespace,
			Name:      info.Labels[nameLabel],
			Dir:       filepath.Join(c.cfg.Dir, info.ID),
			Config:    config,
			NetNS:     o.NetNSPath,
			Options:   options,
			CreatedAt: time.Now(),
		},
		Runtime: info.Runtime.Name,
		Labels:  info.Labels,
	}
	if ext := info.Extensions[metadataKey]; ext != nil && json.Valid(ext.GetValue()) {
		p.CRI = ext.GetValue()
	}
	return p, nil
}

// podConfig is what the CRI plugin gives; other clients need not.
func podConfig(o core.CreateOptions) (*runtime.PodSandboxConfig, error) {
	config := &runtime.PodSandboxConfig{}
	if o.Options != nil && o.Options.GetTypeUrl() != "" {
		if err := typeurl.UnmarshalTo(o.Options, config); err != nil {
			return nil, fmt.Errorf("sandbox options have type %s and must be CRI's PodSandboxConfig: %w: %w",
				o.Options.GetTypeUrl(), err, errdefs.ErrInvalidArgument)
		}
	}
	for key, value := range o.Annotations {
		if config.Annotations == nil {
			config.Annotations = map[string]string{}
		}
		config.Annotations[key] = value
	}
	return config, nil
}

// handlerOptions takes a handler's options as the CRI plugin passes them on for
// any runtime type but runc's: as TOML.
func handlerOptions(options typeurl.Any) (Options, error) {
	if options == nil || options.GetTypeUrl() == "" || len(options.GetValue()) == 0 {
		return Options{}, nil
	}
	var o runtimeoptions.Options
	if err := typeurl.UnmarshalTo(options, &o); err != nil {
		return Options{}, fmt.Errorf("handler options have type %s: set runtime_type of the handler to %s: %w",
			options.GetTypeUrl(), RuntimeType, errdefs.ErrInvalidArgument)
	}
	if o.ConfigPath == "" {
		return Options{TOML: o.ConfigBody}, nil
	}
	b, err := os.ReadFile(o.ConfigPath)
	if err != nil {
		return Options{}, fmt.Errorf("read handler options (ConfigPath): %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return Options{TOML: b}, nil
}
