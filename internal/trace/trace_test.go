package trace_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/tracing"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
)

func TestSpans(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	provider := sdk.NewTracerProvider(sdk.WithSpanProcessor(recorder))
	ctx, call := provider.Tracer("").Start(t.Context(), "call")
	if !trace.On(ctx) {
		t.Error("a context with a span that is recorded is not traced")
	}
	fail := errors.New("no room")
	inner, span := trace.Start(ctx, "phase")
	span.Set(trace.Sandbox, "a")
	span.Number(trace.Process, 7)
	begin := time.Unix(1000, 0)
	trace.Past(inner, "part", begin, begin.Add(time.Second))
	span.End(&fail)
	call.End()

	ended := recorder.Ended()
	if len(ended) != 3 {
		t.Fatalf("%d spans", len(ended))
	}
	part, phase := ended[0], ended[1]
	if part.Parent().SpanID() != phase.SpanContext().SpanID() || phase.Parent().SpanID() != call.SpanContext().SpanID() {
		t.Error("a span has the wrong parent")
	}
	if !part.StartTime().Equal(begin) || part.EndTime().Sub(begin) != time.Second {
		t.Errorf("what is past was from %v to %v", part.StartTime(), part.EndTime())
	}
	if s := phase.Status(); s.Code != codes.Error || s.Description != "no room" {
		t.Errorf("status %+v", s)
	}
	set := attribute.NewSet(phase.Attributes()...)
	if set.Len() != 2 {
		t.Errorf("attributes %v", phase.Attributes())
	}
	want := "00-" + phase.SpanContext().TraceID().String() + "-" + phase.SpanContext().SpanID().String() + "-01"
	if got := trace.Carrier(inner); got != want {
		t.Errorf("carrier %q, want %q", got, want)
	}
}

// phase is one as the daemon has them.
func phase(ctx context.Context) (err error) {
	ctx, span := trace.Start(ctx, "phase")
	defer span.End(&err)
	span.Set(trace.Sandbox, "a")
	return ctx.Err()
}

// layers is as many as a context of the daemon's has at a phase.
const layers = 12

func deep(ctx context.Context) context.Context {
	for i := range layers {
		ctx = context.WithValue(ctx, new(int), i)
	}
	return ctx
}

func TestOff(t *testing.T) {
	ctx := deep(t.Context())
	if trace.On(ctx) || trace.Carrier(ctx) != "" {
		t.Error("a context without a span is traced")
	}
	if n := testing.AllocsPerRun(100, func() { _ = phase(ctx) }); n != 0 {
		t.Errorf("a phase that nobody wants to know of takes memory %v times", n)
	}
}

func BenchmarkOff(b *testing.B) {
	ctx := deep(b.Context())
	b.ReportAllocs()
	for b.Loop() {
		_ = phase(ctx)
	}
}

// BenchmarkContainerd is the same with containerd's own spans.
func BenchmarkContainerd(b *testing.B) {
	ctx := deep(b.Context())
	b.ReportAllocs()
	for b.Loop() {
		_, span := tracing.StartSpan(ctx, "phase")
		span.SetAttributes(tracing.Attribute(trace.Sandbox, "a"))
		span.SetStatus(nil)
		span.End()
	}
}

// BenchmarkOn records and drops.
func BenchmarkOn(b *testing.B) {
	ctx, span := sdk.NewTracerProvider().Tracer("").Start(b.Context(), "call")
	defer span.End()
	ctx = deep(ctx)
	b.ReportAllocs()
	for b.Loop() {
		_ = phase(ctx)
	}
}
