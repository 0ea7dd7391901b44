package task

import (
	"context"
	"math"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// liar is an agent that says anything of its phases.
type liar struct {
	api.AgentService
	says  *api.PhasesResponse
	stall chan struct{}
}

func (liar) Info(context.Context, *api.InfoRequest) (*api.InfoResponse, error) {
	return &api.InfoResponse{Protocol: Protocol}, nil
}

func (l liar) Phases(ctx context.Context, _ *api.PhasesRequest) (*api.PhasesResponse, error) {
	if l.stall != nil {
		<-l.stall
	}
	return l.says, nil
}

func (l liar) connect(t *testing.T) *Client {
	t.Helper()
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	api.RegisterAgentService(server, l)
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(context.Background(), listener) }()
	conn, err := net.Dial("unix", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewClient(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		server.Close()
	})
	return c
}

// placed are the phases that there are after a boot and a call of which the
// agent says this. Both went on for a second.
func placed(t *testing.T, l liar) []sdk.ReadOnlySpan {
	t.Helper()
	recorder := tracetest.NewSpanRecorder()
	ctx, span := sdk.NewTracerProvider(sdk.WithSpanProcessor(recorder)).Tracer("").Start(t.Context(), "call")
	c := l.connect(t)
	c.Booted(ctx, began, began.Add(time.Second))
	c.phases(ctx, "call", began, began.Add(time.Second))
	span.End()
	ended := recorder.Ended()
	return ended[:len(ended)-1]
}

var began = time.Unix(1e9, 0)

// FuzzPhases holds that whatever an agent says, a trace has few phases of it,
// within its call, and with names that one can print.
func FuzzPhases(f *testing.F) {
	f.Add(int64(1e9), "process", int64(0), int64(1e9), 1)
	f.Add(int64(math.MaxInt64), "kernel", int64(math.MinInt64), int64(math.MaxInt64), 2)
	f.Add(int64(math.MinInt64), "\x1b[2J\r\n\u202e", int64(5), int64(3), 1)
	f.Add(int64(-1), strings.Repeat("long", 1000), int64(-5), int64(math.MaxInt64), 1000)
	f.Fuzz(func(t *testing.T, took int64, name string, begin, end int64, n int) {
		says := &api.PhasesResponse{Took: took}
		for range min(n, 4*api.MaxPhases) {
			says.Phases = append(says.Phases, &api.Phase{Name: strings.ToValidUTF8(name, ""), Begin: begin, End: end})
		}
		spans := placed(t, liar{says: says})
		if len(spans) > 2*api.MaxPhases {
			t.Errorf("%d phases", len(spans))
		}
		for _, s := range spans {
			if s.StartTime().Before(began) || s.EndTime().After(began.Add(time.Second)) || s.EndTime().Before(s.StartTime()) {
				t.Errorf("phase from %v to %v of a call from %v", s.StartTime(), s.EndTime(), began)
			}
			if text := strings.TrimPrefix(s.Name(), "agent."); len(text) > maxName || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("phase %q", s.Name())
			}
		}
	})
}

// What the agent knows of a boot ends with it; what it knows of a call is in the
// middle.
func TestPlaces(t *testing.T) {
	spans := placed(t, liar{says: &api.PhasesResponse{Took: 4e8, Phases: []*api.Phase{{Name: "one", Begin: 1e8, End: 3e8}}}})
	if len(spans) != 2 {
		t.Fatalf("%d phases", len(spans))
	}
	for i, want := range []time.Duration{700 * time.Millisecond, 400 * time.Millisecond} {
		if from := spans[i].StartTime().Sub(began); from != want || spans[i].EndTime().Sub(spans[i].StartTime()) != 200*time.Millisecond {
			t.Errorf("phase %d is from %v to %v", i, from, spans[i].EndTime().Sub(began))
		}
	}
}

// An agent that does not answer delays a traced call, and does not fail it.
func TestStalls(t *testing.T) {
	l := liar{stall: make(chan struct{})}
	defer close(l.stall)
	if spans := placed(t, l); len(spans) != 0 {
		t.Errorf("%d phases", len(spans))
	}
}
