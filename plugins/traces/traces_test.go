package traces

import (
	"context"
	"net"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"go.opentelemetry.io/otel"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
)

// served is a hub with a client. What comes from ended are those who watched.
func served(t *testing.T) (h *hub, c *grpc.ClientConn, ended chan any) {
	t.Helper()
	ended = make(chan any, 2*maxWatchers)
	h = newHub()
	s := grpc.NewServer(grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, watch grpc.StreamHandler) error {
		defer func() { ended <- nil }()
		return watch(srv, ss)
	}))
	if err := h.Register(s); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(l) }()
	c, err = grpc.NewClient("unix:"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		h.Close()
		s.Stop()
	})
	return h, c, ended
}

// watching returns when spans are recorded.
func watching(ctx context.Context, t *testing.T, c *grpc.ClientConn) grpc.ClientStream {
	t.Helper()
	s, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/"+trace.Service+"/"+trace.Watch)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SendMsg(&emptypb.Empty{}); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Header(); err != nil {
		t.Fatal(err)
	}
	return s
}

// call is one of the daemon's, with a phase. It says whether it was traced.
func call(t *testing.T) bool {
	ctx, span := otel.Tracer("test").Start(t.Context(), "call")
	defer span.End()
	_, phase := trace.Start(ctx, "phase")
	phase.End(nil)
	return trace.On(ctx)
}

func await(t *testing.T, what string, s grpc.ClientStream, name string) {
	t.Helper()
	var d tracepb.TracesData
	if err := s.RecvMsg(&d); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if got := d.ResourceSpans[0].ScopeSpans[0].Spans[0].Name; got != name {
		t.Errorf("%s: span %q, want %q", what, got, name)
	}
}

// TestWatch is one test: who records spans can be set but once in a process.
func TestWatch(t *testing.T) {
	if call(t) {
		t.Fatal("calls are traced before anybody watches")
	}
	h, c, ended := served(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first, second := watching(ctx, t, c), watching(ctx, t, c)
	if !call(t) {
		t.Fatal("calls are not traced")
	}
	for _, s := range []grpc.ClientStream{first, second} {
		await(t, "phase", s, "phase")
		await(t, "call", s, "call")
	}
	cancel()
	<-ended
	<-ended
	if call(t) {
		t.Error("calls are traced when nobody watches any more")
	}
	again := watching(t.Context(), t, c)
	call(t)
	await(t, "watched again", again, "phase")
	await(t, "watched again", again, "call")

	t.Run("crowd", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for range maxWatchers - 1 {
			watching(ctx, t, c)
		}
		s, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/"+trace.Service+"/"+trace.Watch)
		if err != nil {
			t.Fatal(err)
		}
		_ = s.SendMsg(&emptypb.Empty{})
		if err := errgrpc.ToNative(s.RecvMsg(&tracepb.TracesData{})); !errdefs.IsResourceExhausted(err) {
			t.Errorf("one too many: %v", err)
		}
	})
	t.Run("close", func(t *testing.T) {
		h.Close()
		if err := errgrpc.ToNative(again.RecvMsg(&tracepb.TracesData{})); !errdefs.IsUnavailable(err) {
			t.Errorf("it watches a daemon that stops: %v", err)
		}
	})
}

// Who does not read is not waited for.
func TestBehind(t *testing.T) {
	h := newHub()
	w := make(chan *tracepb.TracesData, 1)
	h.watchers[w] = nil
	for range 3 {
		if err := h.UploadTraces(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	if len(h.watchers) != 0 {
		t.Error("it is kept")
	}
	if <-w == nil {
		t.Error("what it was sent is lost")
	}
	if _, open := <-w; open {
		t.Error("it is not told")
	}
}
