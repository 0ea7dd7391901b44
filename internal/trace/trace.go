// Package trace marks the phases of what the daemon does, as spans of
// OpenTelemetry.
//
// A phase is a span only where its caller's is one: containerd begins a trace
// with each call of its API, if anybody wants traces. If nobody does, a phase
// costs a look into its context and no memory.
package trace

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// Keys of attributes. The ids have the names that the CRI plugin has for them.
const (
	Sandbox   = "sandbox.id"
	Container = "container.id"
	Sandboxer = "kuasar.sandboxer" // its name
	Pod       = "kuasar.pod"       // Kubernetes's name of it, "namespace/name"
	Process   = "kuasar.pid"       // as its agent sees it
)

// Span is a phase. The zero value is one of which nobody wants to know.
type Span struct{ span trace.Span }

// On says whether somebody wants to know of phases of ctx.
func On(ctx context.Context) bool { return trace.SpanFromContext(ctx).IsRecording() }

// Start begins a phase. What is called with the context returned is part of it.
func Start(ctx context.Context, name string) (context.Context, Span) {
	caller := trace.SpanFromContext(ctx)
	if !caller.IsRecording() {
		return ctx, Span{}
	}
	ctx, span := caller.TracerProvider().Tracer(Scope).Start(ctx, name)
	return ctx, Span{span}
}

// Scope tells our spans from containerd's.
const Scope = "github.com/containerd-kuasar/containerd-kuasar"

// End ends the phase, with what went wrong in it; nil is of one that cannot.
func (s Span) End(err *error) {
	if err == nil {
		s.EndAt(time.Now(), nil)
		return
	}
	s.EndAt(time.Now(), *err)
}

// EndAt is End for a phase that was over at a time.
func (s Span) EndAt(at time.Time, err error) {
	if s.span == nil {
		return
	}
	if err != nil {
		s.span.SetStatus(codes.Error, err.Error())
	}
	s.span.End(trace.WithTimestamp(at))
}

// Set gives the phase an attribute.
func (s Span) Set(key, value string) {
	if s.span != nil {
		s.span.SetAttributes(attribute.String(key, value))
	}
}

// Number is Set for a number.
func (s Span) Number(key string, value int64) {
	if s.span != nil {
		s.span.SetAttributes(attribute.Int64(key, value))
	}
}

// Carrier is ctx's span as W3C's traceparent: a name for it that others need not
// understand. It is empty if there is none.
func Carrier(ctx context.Context) string {
	c := trace.SpanFromContext(ctx).SpanContext()
	if !c.IsValid() {
		return ""
	}
	return "00-" + c.TraceID().String() + "-" + c.SpanID().String() + "-" + c.TraceFlags().String()
}

// Past adds a phase that is over.
func Past(ctx context.Context, name string, begin, end time.Time) {
	if caller := trace.SpanFromContext(ctx); caller.IsRecording() {
		_, span := caller.TracerProvider().Tracer(Scope).Start(ctx, name, trace.WithTimestamp(begin))
		span.End(trace.WithTimestamp(end))
	}
}

// Service is gRPC's name of the daemon's own, and Watch its call; see package
// plugins/traces.
const (
	Service = "kuasar.traces.v1.Traces"
	Watch   = "Watch"
)
