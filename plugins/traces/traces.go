// Package traces lets operators watch the daemon's traces as they come, without
// a collector, a configuration or a restart: see Node.Watch of package ctl.
//
// While nobody watches there is nothing that records spans, unless containerd's
// own export by OTLP is configured: then those who watch see what is exported.
package traces

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/propagation"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	oteltrace "go.opentelemetry.io/otel/trace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
)

const (
	// maxWatchers bounds those who watch at a time.
	maxWatchers = 8

	// maxBehind bounds the spans that one of them has not read yet. The start of
	// a pod has some fifty.
	maxBehind = 2048
)

func init() {
	registry.Register(&plugin.Registration{
		Type:   plugins.GRPCPlugin,
		ID:     "kuasar-traces",
		InitFn: func(*plugin.InitContext) (any, error) { return newHub(), nil },
	})
}

// watched says whether somebody watches. It is the process's, as OpenTelemetry's
// provider of spans is, which asks for it.
var watched atomic.Bool

// hub gives spans to those who watch. It implements otlptrace.Client.
type hub struct {
	life context.Context // until Close
	stop context.CancelFunc

	mu        sync.Mutex
	provider  *sdk.TracerProvider // since somebody has watched
	processor sdk.SpanProcessor   // while somebody does
	watchers  map[chan *tracepb.TracesData]any
}

func newHub() *hub {
	h := &hub{watchers: map[chan *tracepb.TracesData]any{}}
	h.life, h.stop = context.WithCancel(context.Background())
	return h
}

// Close ends all watching: a server that stops waits for it.
func (h *hub) Close() error {
	h.stop()
	return nil
}

// watcher is what the service is of, for gRPC to check.
type watcher interface {
	watch(grpc.ServerStream) error
}

// Register implements containerd's interface of a service. The one call takes
// google.protobuf.Empty and streams opentelemetry.proto.trace.v1.TracesData: the
// headers come when spans are recorded.
func (h *hub) Register(s *grpc.Server) error {
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: trace.Service,
		HandlerType: (*watcher)(nil),
		Streams: []grpc.StreamDesc{{StreamName: trace.Watch, ServerStreams: true, Handler: func(srv any, s grpc.ServerStream) error {
			if err := s.RecvMsg(&emptypb.Empty{}); err != nil {
				return err
			}
			return errgrpc.ToGRPC(srv.(watcher).watch(s))
		}}},
	}, h)
	return nil
}

func (h *hub) watch(s grpc.ServerStream) error {
	spans, err := h.join()
	if err != nil {
		return err
	}
	defer h.leave(spans)
	if err := s.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	for {
		select {
		case d, ok := <-spans:
			if !ok {
				return fmt.Errorf("watch traces: %d spans were not read in time: %w", maxBehind, errdefs.ErrResourceExhausted)
			}
			if err := s.SendMsg(d); err != nil {
				return err
			}
		case <-s.Context().Done():
			return nil
		case <-h.life.Done():
			return fmt.Errorf("watch traces: the daemon stops: %w", errdefs.ErrUnavailable)
		}
	}
}

// join adds one who watches.
func (h *hub) join() (chan *tracepb.TracesData, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.watchers) == maxWatchers {
		return nil, fmt.Errorf("watch traces: %d do already: %w", maxWatchers, errdefs.ErrResourceExhausted)
	}
	if h.provider == nil {
		h.provider = h.find()
	}
	spans := make(chan *tracepb.TracesData, maxBehind)
	h.watchers[spans] = nil
	if h.processor == nil {
		h.processor = sdk.NewSimpleSpanProcessor(otlptrace.NewUnstarted(h))
		h.provider.RegisterSpanProcessor(h.processor)
		watched.Store(true)
	}
	return spans, nil
}

// leave removes one who watches. The last one ends the recording.
func (h *hub) leave(spans chan *tracepb.TracesData) {
	h.mu.Lock()
	delete(h.watchers, spans)
	processor := h.processor
	if len(h.watchers) > 0 || processor == nil {
		h.mu.Unlock()
		return
	}
	watched.Store(false)
	h.processor = nil
	h.mu.Unlock()
	h.provider.UnregisterSpanProcessor(processor) // which may wait for UploadTraces
}

// find returns the one who records spans: containerd, where it exports them, or
// the hub.
func (h *hub) find() *sdk.TracerProvider {
	if p, ok := otel.GetTracerProvider().(*sdk.TracerProvider); ok {
		return p
	}
	p := sdk.NewTracerProvider(sdk.WithSampler(sampler{}))
	otel.SetTracerProvider(p)
	otel.SetTextMapPropagator(propagation.TraceContext{})
	return p
}

// sampler has all recorded while somebody watches, whatever a client of the
// daemon's samples.
type sampler struct{}

// ShouldSample implements sdk.Sampler.
func (sampler) ShouldSample(p sdk.SamplingParameters) sdk.SamplingResult {
	r := sdk.SamplingResult{Decision: sdk.Drop, Tracestate: oteltrace.SpanContextFromContext(p.ParentContext).TraceState()}
	if watched.Load() {
		r.Decision = sdk.RecordAndSample
	}
	return r
}

// Description implements sdk.Sampler.
func (sampler) Description() string { return "while somebody watches" }

// UploadTraces implements otlptrace.Client. It waits for nobody.
func (h *hub) UploadTraces(_ context.Context, spans []*tracepb.ResourceSpans) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		select {
		case w <- &tracepb.TracesData{ResourceSpans: spans}:
		default: // it reads too slowly
			delete(h.watchers, w)
			close(w)
		}
	}
	return nil
}

// Start implements otlptrace.Client.
func (h *hub) Start(context.Context) error { return nil }

// Stop implements otlptrace.Client.
func (h *hub) Stop(context.Context) error { return nil }
