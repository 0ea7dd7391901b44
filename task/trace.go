package task

import (
	"context"
	"path"
	"strings"
	"time"
	"unicode"

	"github.com/containerd/ttrpc"

	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

const (
	// phasesTime bounds what a traced call waits for its agent's phases.
	phasesTime = time.Second

	// maxName bounds a phase's name, in bytes.
	maxName = 32

	// phasesCall is the one call that is not traced: it is for a trace.
	phasesCall = "Phases"
)

// traced is a client's interceptor. It makes a span of a call, if somebody
// wants that, with the agent's phases in it.
func (c *Client) traced(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, info *ttrpc.UnaryClientInfo, call ttrpc.Invoker) error {
	name := path.Base(info.FullMethod)
	if name == phasesCall || !trace.On(ctx) {
		return call(ctx, req, resp)
	}
	ctx, span := trace.Start(ctx, "agent."+name)
	begin := time.Now()
	id := trace.Carrier(ctx)
	req.Metadata = append(req.Metadata, &ttrpc.KeyValue{Key: api.CallKey, Value: id})
	err := call(ctx, req, resp)
	end := time.Now()
	if divided(name) {
		c.phases(ctx, id, begin, end)
	}
	span.EndAt(end, err)
	return err
}

// divided says whether agents know phases of a call.
func divided(call string) bool {
	switch call {
	case "Create", "Start", "Setup", "Network":
		return true
	}
	return false
}

// Booted adds the phases of a guest's boot to ctx's span. The guest said hello
// just at end.
func (c *Client) Booted(ctx context.Context, begin, end time.Time) {
	if trace.On(ctx) {
		c.phases(ctx, "", begin, end)
	}
}

// phases adds those of a call that took from begin to end, as the agent tells.
// Its own clock is another: the time that it knows nothing of is taken for that
// of the way there and of the way back, which are alike; of a boot, for what was
// before.
func (c *Client) phases(ctx context.Context, call string, begin, end time.Time) {
	asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), phasesTime)
	defer cancel()
	p, err := c.Phases(asking, &api.PhasesRequest{Call: call})
	if err != nil {
		return // the agent knows of none
	}
	origin := end.Add(-time.Duration(p.Took))
	if call != "" {
		origin = begin.Add((end.Sub(begin) - time.Duration(p.Took)) / 2)
	}
	within := func(at int64) time.Time {
		t := origin.Add(time.Duration(at))
		if t.Before(begin) {
			return begin
		}
		if t.After(end) {
			return end
		}
		return t
	}
	for _, f := range p.Phases[:min(len(p.Phases), api.MaxPhases)] {
		if from, to := within(f.GetBegin()), within(f.GetEnd()); f.GetName() != "" && !to.Before(from) {
			trace.Past(ctx, "agent."+clean(f.Name), from, to)
		}
	}
}

// clean makes a name of what an agent says.
func clean(name string) string {
	return strings.Map(func(r rune) rune {
		if r > unicode.MaxASCII || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, name[:min(len(name), maxName)])
}
