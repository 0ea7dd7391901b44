// Package phase lets an agent say what the time of a call went into. It keeps
// times only of calls that somebody is going to ask about: see api.CallKey. All
// other calls cost a look into their context.
package phase

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// maxCalls bounds those that nobody has asked about.
const maxCalls = 64

// Log has the phases of calls. The zero value is ready, and it is safe for
// concurrent use.
type Log struct {
	mu    sync.Mutex
	order []string // of calls, the oldest first
	calls map[string]*api.PhasesResponse
}

// Interceptor follows calls whose callers want to know.
func (l *Log) Interceptor(ctx context.Context, u ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, call ttrpc.Method) (any, error) {
	name, ok := ttrpc.GetMetadataValue(ctx, api.CallKey)
	if !ok || name == "" || len(name) > api.MaxCall {
		return call(ctx, u)
	}
	r := &run{from: time.Now()}
	resp, err := call(context.WithValue(ctx, key{}, r), u)
	l.Keep(name, r.end())
	return resp, err
}

// Keep keeps a call's phases until Take; "" is the boot.
func (l *Log) Keep(call string, p *api.PhasesResponse) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.calls == nil {
		l.calls = map[string]*api.PhasesResponse{}
	}
	if l.calls[call] == nil {
		l.order = append(l.order, call)
	}
	l.calls[call] = p
	if len(l.order) > maxCalls {
		delete(l.calls, l.order[0])
		l.order = slices.Delete(l.order, 0, 1)
	}
}

// Take returns what Keep was given, once.
func (l *Log) Take(call string) (*api.PhasesResponse, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.calls[call]
	if p == nil {
		return nil, fmt.Errorf("phases of %q: %w", call, errdefs.ErrNotFound)
	}
	delete(l.calls, call)
	l.order = slices.DeleteFunc(l.order, func(s string) bool { return s == call })
	return p, nil
}

// run is a call that goes on.
type run struct {
	from time.Time

	mu     sync.Mutex
	phases []*api.Phase
	over   bool
}

type key struct{}

// Begin begins a phase of ctx's call; the function that it returns ends it.
func Begin(ctx context.Context, name string) (end func()) {
	r, ok := ctx.Value(key{}).(*run)
	if !ok {
		return nothing
	}
	begin := time.Since(r.from)
	return func() { r.add(&api.Phase{Name: name, Begin: int64(begin), End: int64(time.Since(r.from))}) }
}

func nothing() {}

// add notes a phase that is over, unless it has outlived its call.
func (r *run) add(p *api.Phase) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.over && len(r.phases) < api.MaxPhases {
		r.phases = append(r.phases, p)
	}
}

func (r *run) end() *api.PhasesResponse {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	return &api.PhasesResponse{Took: int64(time.Since(r.from)), Phases: r.phases}
}
