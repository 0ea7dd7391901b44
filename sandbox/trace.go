package sandbox

import (
	"context"

	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
)

// trace begins a call about a sandbox. Other calls about it may have to end
// first: that is part of it.
func (c *Controller) trace(ctx context.Context, call, id string) (context.Context, trace.Span) {
	ctx, span := trace.Start(ctx, call)
	span.Set(trace.Sandbox, id)
	span.Set(trace.Sandboxer, c.cfg.Name)
	return ctx, span
}

// podName is what people call the sandbox.
func (s Spec) podName() string {
	m := s.Config.GetMetadata()
	if m.GetName() == "" {
		return s.Name
	}
	return m.GetNamespace() + "/" + m.GetName()
}
