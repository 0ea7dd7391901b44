package sandbox_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/sandboxtest"
)

func resize(value string) core.Sandbox {
	return core.Sandbox{Extensions: map[string]typeurl.Any{
		"updated-resources": &anypb.Any{TypeUrl: "github.com/containerd/cri/pkg/store/sandbox/UpdatedResources", Value: []byte(value)},
		"metadata":          metadata,
	}}
}

const bigger = `{"Overhead":{"memory_limit_in_bytes":7},"Resources":{"cpu_shares":512}}`

func TestUpdate(t *testing.T) {
	f := newFixture(t)
	var got []sandbox.Resources
	var failure error
	f.memory.Extras = &sandboxtest.Extras{OnUpdate: func(_ context.Context, r sandbox.Resources) error {
		got = append(got, r)
		return failure
	}}
	f.run("one")
	f.must(f.Update(f.ctx, "one", resize(bigger), "extensions"))
	if len(got) != 1 || got[0].Overhead.MemoryLimitInBytes != 7 || got[0].Resources.CpuShares != 512 {
		t.Fatalf("resources %+v", got)
	}
	f.restart() // CRI forgets them
	if i := info(t, f.status("one")); i.Overhead.Linux.MemoryLimitInBytes != 7 || i.Resources.Linux.CpuShares != 512 {
		t.Errorf("after a restart: %+v, %+v", i.Overhead, i.Resources)
	}
	f.must(f.Update(f.ctx, "one", core.Sandbox{}, "extensions")) // another's extension
	if len(got) != 1 {
		t.Errorf("updated without new resources: %+v", got)
	}
	failure = errHook
	if err := f.Update(f.ctx, "one", resize(`{}`), "extensions"); !errors.Is(err, errHook) {
		t.Errorf("update: %v", err)
	}
	if i := info(t, f.status("one")); i.Overhead.Linux.MemoryLimitInBytes != 7 {
		t.Errorf("a failed update shows: %+v", i.Overhead)
	}
	f.must(f.Shutdown(f.ctx, "one"))
}

func TestBadUpdate(t *testing.T) {
	f := newFixture(t)
	f.run("plain")
	f.memory.Extras = &sandboxtest.Extras{OnUpdate: func(context.Context, sandbox.Resources) error { panic("injected") }}
	f.run("full")
	f.must(f.create("created"))
	for name, test := range map[string]struct {
		id      string
		changed core.Sandbox
		field   string
		is      func(error) bool
		says    string
	}{
		"no such sandbox": {"none", resize(bigger), "extensions", errdefs.IsNotFound, "none"},
		"cannot resize":   {"plain", resize(bigger), "extensions", errdefs.IsNotImplemented, "memory"},
		"does not run":    {"created", resize(bigger), "extensions", errdefs.IsFailedPrecondition, "created"},
		"not decoded":     {"full", resize(`{"Overhead":1}`), "extensions", errdefs.IsInvalidArgument, "updated-resources"},
		"another field":   {"full", resize(bigger), "labels", errdefs.IsNotImplemented, "labels"},
		"panic":           {"full", resize(bigger), "extensions", errdefs.IsInternal, "injected"},
	} {
		t.Run(name, func(t *testing.T) {
			err := f.Update(f.ctx, test.id, test.changed, test.field)
			if !test.is(err) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %v", err)
			}
		})
	}
	for _, id := range []string{"plain", "full", "created"} {
		f.must(f.Shutdown(f.ctx, id))
	}
}

func TestMetrics(t *testing.T) {
	f := newFixture(t)
	f.run("plain")
	if _, err := f.Metrics(f.ctx, "plain"); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "memory") {
		t.Errorf("without any: %v", err)
	}
	stats, err := typeurl.MarshalAny(&runtime.PodSandboxConfig{Hostname: "h"})
	f.must(err)
	answer := func(context.Context) (typeurl.Any, error) { return stats, nil }
	f.memory.Extras = &sandboxtest.Extras{OnStats: func(ctx context.Context) (typeurl.Any, error) { return answer(ctx) }}
	f.run("one")
	m, err := f.Metrics(f.ctx, "one")
	f.must(err)
	if m.ID != "one" || m.Timestamp == nil || m.Data.TypeUrl != stats.GetTypeUrl() || len(m.Data.Value) == 0 {
		t.Errorf("metrics %+v", m)
	}
	answer = func(context.Context) (typeurl.Any, error) { panic("injected") }
	f.run("two")
	if _, err := f.Metrics(f.ctx, "two"); !errdefs.IsInternal(err) {
		t.Errorf("panic: %v", err)
	}
	for _, id := range []string{"plain", "one", "two"} {
		f.must(f.Shutdown(f.ctx, id))
	}
}
