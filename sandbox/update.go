package sandbox

import (
	"context"
	"encoding/json"
	"fmt"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
)

const (
	// extensions is the only field of a sandbox that the CRI plugin updates.
	extensions = "extensions"

	// updatedResources is the extension that carries UpdatePodSandboxResources
	// (internal/cri/server/podsandbox.UpdatedResourcesKey).
	updatedResources = "updated-resources"
)

// Update resizes a running sandbox; nothing else of it can be updated.
func (c *Controller) Update(ctx context.Context, id string, changed core.Sandbox, fields ...string) (err error) {
	ctx, span := c.trace(ctx, "sandbox.Update", id)
	defer span.End(&err)
	b, err := c.box(id)
	if err != nil {
		return err
	}
	for _, field := range fields {
		if field != extensions {
			return fmt.Errorf("update sandbox %s: %s of a sandbox cannot be changed, only %s can: %w", id, field, extensions, errdefs.ErrNotImplemented)
		}
	}
	ext := changed.Extensions[updatedResources]
	if ext == nil {
		return nil // another's
	}
	var r Resources
	if err := json.Unmarshal(ext.GetValue(), &r); err != nil {
		return fmt.Errorf("update sandbox %s: decode extension %s: %w: %w", id, updatedResources, err, errdefs.ErrInvalidArgument)
	}
	end, err := b.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if err := c.resize(ctx, b, r); err != nil {
		return fmt.Errorf("update sandbox %s: %w", id, err)
	}
	return nil
}

func (c *Controller) resize(ctx context.Context, b *box, r Resources) error {
	state, sandbox := b.current()
	if state != Running {
		return fmt.Errorf("it is %s: %w", state, errdefs.ErrFailedPrecondition)
	}
	u, ok := sandbox.(Updater)
	if !ok {
		return fmt.Errorf("sandboxer %s cannot resize: %w", c.cfg.Name, errdefs.ErrNotImplemented)
	}
	if err := try(ctx, b.id, "update", func(ctx context.Context) error { return u.Update(ctx, r) }); err != nil {
		return err
	}
	b.mu.Lock()
	b.resources = &r
	b.mu.Unlock()
	return b.save(ctx)
}
