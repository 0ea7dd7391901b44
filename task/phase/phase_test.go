package phase_test

import (
	"context"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/task/phase"
)

// called makes a call, under a name unless that is empty.
func called(t *testing.T, l *phase.Log, name string, f func(context.Context)) {
	t.Helper()
	ctx := t.Context()
	if name != "" {
		ctx = ttrpc.WithMetadata(ctx, ttrpc.MD{api.CallKey: {name}})
	}
	answer, err := l.Interceptor(ctx, nil, &ttrpc.UnaryServerInfo{}, func(ctx context.Context, _ func(any) error) (any, error) {
		f(ctx)
		return "answer", context.Canceled
	})
	if answer != "answer" || err != context.Canceled {
		t.Errorf("the call's answer is %v, %v", answer, err)
	}
}

func TestCall(t *testing.T) {
	var l phase.Log
	var late func()
	called(t, &l, "a", func(ctx context.Context) {
		phase.Begin(ctx, "first")()
		end := phase.Begin(ctx, "around")
		phase.Begin(ctx, "second")()
		end()
		late = phase.Begin(ctx, "late")
	})
	late()
	p, err := l.Take("a")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range p.Phases {
		names = append(names, f.Name)
		if f.Begin < 0 || f.End < f.Begin || f.End > p.Took {
			t.Errorf("phase %v of a call that took %d", f, p.Took)
		}
	}
	if got := strings.Join(names, " "); got != "first second around" {
		t.Errorf("phases %q", got)
	}
	if _, err := l.Take("a"); !errdefs.IsNotFound(err) {
		t.Errorf("taken twice: %v", err)
	}
}

// Calls that nobody asks about keep nothing, and those that somebody might a
// bounded number of things.
func TestBounds(t *testing.T) {
	var l phase.Log
	called(t, &l, "", func(ctx context.Context) {
		if n := testing.AllocsPerRun(100, func() { phase.Begin(ctx, "phase")() }); n != 0 {
			t.Errorf("a phase that nobody asks about takes memory %v times", n)
		}
	})
	called(t, &l, strings.Repeat("x", api.MaxCall+1), func(context.Context) {})
	if _, err := l.Take(""); !errdefs.IsNotFound(err) {
		t.Errorf("a call without a name is kept: %v", err)
	}
	const many = 1000
	for i := range many {
		called(t, &l, strconv.Itoa(i), func(ctx context.Context) {
			for range many {
				phase.Begin(ctx, "phase")()
			}
		})
	}
	kept := 0
	for i := range many {
		p, err := l.Take(strconv.Itoa(i))
		if err != nil {
			continue
		}
		kept++
		if len(p.Phases) != api.MaxPhases {
			t.Errorf("call %d has %d phases", i, len(p.Phases))
		}
	}
	if kept != 64 {
		t.Errorf("%d calls are kept", kept)
	}
}
