package tasks

import (
	"context"

	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
)

// begin begins a call about a container.
func begin(ctx context.Context, call, sandbox, container string) (context.Context, trace.Span) {
	ctx, span := trace.Start(ctx, call)
	span.Set(trace.Sandbox, sandbox)
	span.Set(trace.Container, container)
	return ctx, span
}
