package ctl

import (
	"cmp"
	"encoding/hex"
	"math"
	"slices"
	"strconv"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
)

// Span is a phase of a call.
type Span struct {
	Trace      string            `json:"trace"`
	ID         string            `json:"id"`
	Parent     string            `json:"parent,omitempty"`
	Name       string            `json:"name"`
	Begin      time.Time         `json:"begin"`
	End        time.Time         `json:"end"`
	Error      string            `json:"error,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`

	Root bool `json:"-"`              // nothing of this daemon is above it
	Ours bool `json:"ours,omitempty"` // and not one of containerd's own
}

// Spans reads OpenTelemetry's, in the order in which they ended: it has them by
// who made them.
func Spans(d *tracepb.TracesData) []Span {
	var all []Span
	for _, r := range d.GetResourceSpans() {
		for _, s := range r.GetScopeSpans() {
			for _, p := range s.GetSpans() {
				one := toSpan(p)
				one.Ours = s.GetScope().GetName() == trace.Scope
				all = append(all, one)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b Span) int { return a.End.Compare(b.End) })
	return all
}

func toSpan(p *tracepb.Span) Span {
	s := Span{
		Trace: hex.EncodeToString(p.GetTraceId()), ID: hex.EncodeToString(p.GetSpanId()), Parent: hex.EncodeToString(p.GetParentSpanId()),
		Name: p.GetName(), Begin: moment(p.GetStartTimeUnixNano()), End: moment(p.GetEndTimeUnixNano()),
	}
	s.Root = s.Parent == "" || p.GetFlags()&uint32(tracepb.SpanFlags_SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK) != 0
	if p.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR {
		s.Error = p.GetStatus().GetMessage()
	}
	for _, a := range p.GetAttributes() {
		var text string
		switch v := a.GetValue().GetValue().(type) {
		case *commonpb.AnyValue_StringValue:
			text = v.StringValue
		case *commonpb.AnyValue_IntValue:
			text = strconv.FormatInt(v.IntValue, 10)
		case *commonpb.AnyValue_BoolValue:
			text = strconv.FormatBool(v.BoolValue)
		default:
			continue // none that we have
		}
		if s.Attributes == nil {
			s.Attributes = map[string]string{}
		}
		s.Attributes[a.GetKey()] = text
	}
	return s
}

func moment(ns uint64) time.Time { return time.Unix(0, int64(min(ns, math.MaxInt64))) }

// Took is how long it went on.
func (s Span) Took() time.Duration { return s.End.Sub(s.Begin) }

// Call is a call of the daemon's that has ended: spans in the order in which
// they began, each after the one that it is a part of. The first is the call
// itself.
type Call struct {
	Pod     string `json:"pod,omitempty"`     // "namespace/name", if known
	Sandbox string `json:"sandbox,omitempty"` // id
	Spans   []Span `json:"spans"`

	Ours bool `json:"-"` // it was about one of our sandboxes
}

// Depths are how many spans there are above each.
func (c Call) Depths() []int {
	all := make([]int, len(c.Spans))
	of := map[string]int{}
	for i, s := range c.Spans {
		if above, found := of[s.Parent]; found && i > 0 {
			all[i] = above + 1
		}
		of[s.ID] = all[i]
	}
	return all
}

// maxPending bounds the spans whose calls have not ended.
const maxPending = 1 << 15

// Gatherer makes calls of spans. Those of a call end before it.
type Gatherer struct {
	pending map[string][]Span // by what they are a part of: trace and id
	count   int
	pods    map[string]string // names by id, of our sandboxes
}

// Add takes a span, and returns the call that it ends, if it ends one.
func (g *Gatherer) Add(s Span) (c Call, ended bool) {
	if g.pending == nil || g.count == maxPending { // what is so old has lost its call
		g.pending, g.count = map[string][]Span{}, 0
	}
	if !s.Root {
		k := s.Trace + s.Parent
		g.pending[k] = append(g.pending[k], s)
		g.count++
		return c, false
	}
	g.take(&c, s)
	for _, s := range c.Spans {
		if id := s.Attributes[trace.Sandbox]; id != "" {
			c.Sandbox = id
			if s.Ours {
				g.name(id, s.Attributes[trace.Pod])
			}
		}
	}
	c.Pod, c.Ours = g.pods[c.Sandbox]
	return c, true
}

// take moves a span and its parts into c.
func (g *Gatherer) take(c *Call, s Span) {
	c.Spans = append(c.Spans, s)
	k := s.Trace + s.ID
	parts := g.pending[k]
	delete(g.pending, k)
	g.count -= len(parts)
	slices.SortStableFunc(parts, func(a, b Span) int { return a.Begin.Compare(b.Begin) })
	for _, p := range parts {
		g.take(c, p)
	}
}

// maxPods bounds the names that are remembered.
const maxPods = 4096

func (g *Gatherer) name(sandbox, pod string) {
	if g.pods == nil || len(g.pods) == maxPods { // most are gone by then
		g.pods = map[string]string{}
	}
	g.pods[sandbox] = cmp.Or(pod, g.pods[sandbox])
}
