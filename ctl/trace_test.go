package ctl

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
)

// at is a time within the test's calls, in milliseconds.
func at(ms float64) time.Time { return time.Unix(1e9, 0).UTC().Add(time.Duration(ms * 1e6)) }

// started is how the spans of a pod's start come: a part before its whole.
var started = []Span{
	{Trace: "t", ID: "kernel", Parent: "boot", Name: "agent.kernel", Begin: at(300), End: at(1100), Ours: true},
	{Trace: "t", ID: "share", Parent: "boot", Name: "vmm.share", Begin: at(20), End: at(20.1), Ours: true},
	{Trace: "t", ID: "boot", Parent: "start", Name: "vmm.boot", Begin: at(20), End: at(1500), Ours: true, Error: "no \x1b[2Jroom"},
	{Trace: "t", ID: "create", Parent: "call", Name: "sandbox.Create", Begin: at(5), End: at(10), Ours: true,
		Attributes: map[string]string{trace.Sandbox: "0123456789abcdef", trace.Pod: "default/web"}},
	{Trace: "t", ID: "start", Parent: "call", Name: "sandbox.Start", Begin: at(15), End: at(1900), Ours: true,
		Attributes: map[string]string{trace.Sandbox: "0123456789abcdef"}},
	{Trace: "t", ID: "call", Parent: "kubelet", Root: true, Name: "runtime.v1.RuntimeService/RunPodSandbox", Begin: at(0), End: at(2000)},
}

func gathered(t *testing.T, g *Gatherer, spans ...Span) Call {
	t.Helper()
	for i, s := range spans {
		c, ended := g.Add(s)
		if ended != (i == len(spans)-1) {
			t.Fatalf("span %d (%s): ended %t", i, s.Name, ended)
		}
		if ended {
			return c
		}
	}
	return Call{}
}

func TestWaterfall(t *testing.T) {
	c := gathered(t, &Gatherer{}, started...)
	var out bytes.Buffer
	if err := c.Waterfall(&out, 80); err != nil {
		t.Fatal(err)
	}
	want := `RuntimeService/RunPodSandbox  default/web  2000.0 ms  trace t
RuntimeService/RunPodSandbox        0.0     2000.0  ████████████████████████████
  sandbox.Create                    5.0        5.0  ▏
  sandbox.Start                    15.0     1885.0  ██████████████████████████
    vmm.boot                       20.0     1480.0  █████████████████████
      vmm.share                    20.0        0.1  ▏
      agent.kernel                300.0      800.0      ███████████
vmm.boot: no �[2Jroom

`
	if _, got, _ := strings.Cut(out.String(), "  "); got != want {
		t.Errorf("%s\nwant:\n%s", got, want)
	}
	for _, line := range strings.Split(out.String(), "\n") {
		if utf8.RuneCountInString(line) > 80 {
			t.Errorf("a line of %d characters: %s", utf8.RuneCountInString(line), line)
		}
	}
}

// Calls of one trace are told apart, and a pod's name is known from its first.
func TestGather(t *testing.T) {
	g := &Gatherer{}
	gathered(t, g, started...)
	if g.count != 0 || len(g.pending) != 0 {
		t.Errorf("%d spans are kept", g.count)
	}
	c := gathered(t, g,
		Span{Trace: "t", ID: "run", Parent: "call2", Name: "run", Attributes: map[string]string{trace.Sandbox: "0123456789abcdef"}},
		Span{Trace: "t", ID: "stray", Parent: "nobody"},
		Span{Trace: "t", ID: "call2", Parent: "kubelet", Root: true})
	if len(c.Spans) != 2 || c.Pod != "default/web" {
		t.Errorf("%+v", c)
	}
	for f, want := range map[Filter]bool{
		{}: true, {Pod: "0123"}: true, {Pod: "web"}: true, {Pod: "default/web"}: true, {Pod: "other/web"}: false, {Pod: "1234"}: false, {All: true}: true,
	} {
		if f.passes(c) != want {
			t.Errorf("filter %+v passes it: %t", f, !want)
		}
	}
	other := gathered(t, g, Span{Trace: "t", ID: "call3", Root: true, Attributes: map[string]string{trace.Sandbox: "of another"}})
	if (Filter{}).passes(other) || !(Filter{All: true}).passes(other) || (Filter{All: true, Pod: "web"}).passes(other) {
		t.Error("a call about no sandbox of ours passes, or does not")
	}
	for range 3 * maxPending {
		g.Add(Span{Trace: "t", Parent: "never"})
	}
	if g.count > maxPending || len(g.pending["tnever"]) > maxPending {
		t.Errorf("%d spans wait for their call", g.count)
	}
}

// Whatever is in a span, a terminal is shown text alone, in few columns.
func FuzzWaterfall(f *testing.F) {
	f.Add("a/b", "x", int64(5), int64(1), 80)
	f.Add("\x1b[1m\n", "\u202e", int64(-1), int64(1<<62), 0)
	f.Fuzz(func(t *testing.T, name, message string, begin, end int64, width int) {
		width = min(max(width, 0), 500)
		s := Span{ID: "a", Name: name, Error: message, Begin: time.Unix(0, begin), End: time.Unix(0, end), Ours: true}
		part := s
		part.ID, part.Parent, part.Begin = "b", "a", time.Unix(0, end)
		c := Call{Pod: name, Spans: []Span{s, part}}
		var out bytes.Buffer
		if err := c.Waterfall(&out, width); err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(out.String(), "\n") {
			if strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("%q", line)
			}
		}
	})
}

func TestSpans(t *testing.T) {
	text := func(s string) *commonpb.AnyValue {
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: s}}
	}
	d := &tracepb.TracesData{ResourceSpans: []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{{
		Scope: &commonpb.InstrumentationScope{Name: trace.Scope},
		Spans: []*tracepb.Span{{
			TraceId: []byte{1}, SpanId: []byte{2}, ParentSpanId: []byte{3}, Name: "n", StartTimeUnixNano: 5, EndTimeUnixNano: 7,
			Flags:      uint32(tracepb.SpanFlags_SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK),
			Status:     &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: "m"},
			Attributes: []*commonpb.KeyValue{{Key: "k", Value: text("v")}, {Key: "none"}},
		}, {SpanId: []byte{4}, ParentSpanId: []byte{2}, EndTimeUnixNano: 6}},
	}}}, nil}}
	all := Spans(d)
	if len(all) != 2 {
		t.Fatalf("%+v", all)
	}
	s := all[1] // it ended later
	if s.Trace != "01" || s.ID != "02" || s.Parent != "03" || s.Error != "m" || s.Took() != 2 || !s.Root || !s.Ours || len(s.Attributes) != 1 || s.Attributes["k"] != "v" {
		t.Errorf("%+v", s)
	}
	if all[0].Root {
		t.Errorf("%+v", all[0])
	}
}
