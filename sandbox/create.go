package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
)

var fpDirectory = failpoint.New("sandbox/create/directory")

// meta is what the sandbox is to CRI, for its verbose status.
type meta struct {
	Runtime string            `json:"runtime"` // type of the handler
	CRI     json.RawMessage   `json:"cri,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
}

// metadataKey is the extension in which the CRI plugin keeps its own record
// of a sandbox (internal/cri/server/podsandbox.MetadataKey).
const metadataKey = "metadata"

// Create checks what the sandbox shall be and makes its directory and record.
func (c *Controller) Create(ctx context.Context, info core.Sandbox, opts ...core.CreateOpt) error {
	var o core.CreateOptions
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return err
		}
	}
	spec, m, err := c.describe(ctx, info, o)
	if err != nil {
		return fmt.Errorf("create sandbox %s: %w", info.ID, err)
	}
	b := newBox(spec, m)
	if err := c.add(b); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	if err := c.create(ctx, b); err != nil {
		c.forget(b)
		return errors.Join(fmt.Errorf("create sandbox %s: %w", info.ID, err), b.remove())
	}
	return nil
}

func (c *Controller) create(ctx context.Context, b *box) error {
	if err := os.Mkdir(b.spec.Dir, 0o711); err != nil {
		return err
	}
	fpDirectory.Hit()
	if err := b.save(ctx); err != nil {
		return err
	}
	return guard("create", b.spec.ID, func() error {
		sandbox, err := c.cfg.Backend.Create(ctx, b.spec)
		b.mu.Lock()
		b.sandbox = sandbox
		b.mu.Unlock()
		return err
	})
}

func (c *Controller) describe(ctx context.Context, info core.Sandbox, o core.CreateOptions) (Spec, meta, error) {
	if err := identifiers.Validate(info.ID); err != nil {
		return Spec{}, meta{}, err
	}
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return Spec{}, meta{}, err
	}
	spec := Spec{
		ID:        info.ID,
		Namespace: namespace,
		Name:      info.Labels["name"],
		Dir:       filepath.Join(c.cfg.Dir, info.ID),
		Config:    &runtime.PodSandboxConfig{},
		NetNS:     o.NetNSPath,
		CreatedAt: time.Now(),
	}
	if o.Options != nil {
		if err := typeurl.UnmarshalTo(o.Options, spec.Config); err != nil {
			return Spec{}, meta{}, fmt.Errorf("decode pod configuration of type %s: %w: %w", o.Options.GetTypeUrl(), err, errdefs.ErrInvalidArgument)
		}
	}
	if spec.Options, err = handlerOptions(info.Runtime.Options); err != nil {
		return Spec{}, meta{}, err
	}
	m := meta{Runtime: info.Runtime.Name, Labels: info.Labels}
	if ext := info.Extensions[metadataKey]; ext != nil && json.Valid(ext.GetValue()) {
		m.CRI = ext.GetValue()
	}
	return spec, m, nil
}

// handlerOptions takes a handler's options as containerd passes them on for any
// runtime type but its own: as TOML.
func handlerOptions(options typeurl.Any) (Options, error) {
	if options == nil || len(options.GetValue()) == 0 {
		return Options{}, nil
	}
	var o runtimeoptions.Options
	if err := typeurl.UnmarshalTo(options, &o); err != nil {
		return Options{}, fmt.Errorf("handler options have type %s: set runtime_type to io.containerd.kuasar.v1: %w",
			options.GetTypeUrl(), errdefs.ErrInvalidArgument)
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
