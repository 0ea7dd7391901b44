// Package tracetest records the phases of a test.
package tracetest

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"testing"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
)

// Recording is of one call.
type Recording struct {
	t        testing.TB
	call     trace.Span
	recorder *tracetest.SpanRecorder
}

// Start begins a call, of which the phases of the context returned are.
func Start(ctx context.Context, t testing.TB) (context.Context, *Recording) {
	r := &Recording{t: t, recorder: tracetest.NewSpanRecorder()}
	ctx, r.call = sdk.NewTracerProvider(sdk.WithSpanProcessor(r.recorder)).Tracer("").Start(ctx, "call")
	return ctx, r
}

// Want holds that the call's phases were these, sorted by their names, each line
// by two spaces further right than that of the phase which it is a part of. And
// no part may reach beyond its phase.
func (r *Recording) Want(want string) {
	r.t.Helper()
	if got := r.tree(r.call.SpanContext().SpanID(), ""); got != want {
		r.t.Errorf("phases:\n%s\nwant:\n%s", got, want)
	}
	for _, s := range r.recorder.Ended() {
		p := r.find(s.Parent().SpanID())
		if p != nil && (s.StartTime().Before(p.StartTime()) || s.EndTime().After(p.EndTime())) {
			r.t.Errorf("%s, %v to %v, is not within %s, %v to %v", s.Name(), s.StartTime(), s.EndTime(), p.Name(), p.StartTime(), p.EndTime())
		}
	}
}

func (r *Recording) find(id trace.SpanID) sdk.ReadOnlySpan {
	for _, s := range r.recorder.Ended() {
		if s.SpanContext().SpanID() == id {
			return s
		}
	}
	return nil
}

// Find returns the phase of a name, of which there must be one.
func (r *Recording) Find(name string) sdk.ReadOnlySpan {
	r.t.Helper()
	var found []sdk.ReadOnlySpan
	for _, s := range r.recorder.Ended() {
		if s.Name() == name {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		r.t.Fatalf("%d phases %s", len(found), name)
	}
	return found[0]
}

func (r *Recording) tree(parent trace.SpanID, indent string) string {
	parts := slices.DeleteFunc(r.recorder.Ended(), func(s sdk.ReadOnlySpan) bool { return s.Parent().SpanID() != parent })
	slices.SortFunc(parts, func(a, b sdk.ReadOnlySpan) int { return cmp.Compare(a.Name(), b.Name()) })
	var text strings.Builder
	for _, s := range parts {
		text.WriteString(indent + s.Name() + "\n" + r.tree(s.SpanContext().SpanID(), indent+"  "))
	}
	return text.String()
}
