package sandbox_test

import (
	"testing"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
	"github.com/containerd-kuasar/containerd-kuasar/internal/trace/tracetest"
)

// Each call about a sandbox is a phase of its caller's, and says what it is
// about and how it ended.
func TestTrace(t *testing.T) {
	f := newFixture(t)
	ctx, r := tracetest.Start(f.ctx, t)
	pod := &runtime.PodSandboxConfig{Metadata: &runtime.PodSandboxMetadata{Name: "web", Namespace: "default"}}
	f.must(f.Create(ctx, core.Sandbox{ID: "a", Labels: map[string]string{"name": "long"}}, core.WithOptions(pod)))
	_, err := f.Start(ctx, "a")
	f.must(err)
	if err := f.Update(ctx, "a", core.Sandbox{}, "runtime"); !errdefs.IsNotImplemented(err) {
		t.Errorf("update: %v", err)
	}
	f.must(f.Stop(ctx, "a"))
	f.must(f.Shutdown(ctx, "a"))
	r.Want("sandbox.Create\nsandbox.Shutdown\nsandbox.Start\nsandbox.Stop\nsandbox.Update\n")
	set := map[string]string{}
	for _, a := range r.Find("sandbox.Create").Attributes() {
		set[string(a.Key)] = a.Value.AsString()
	}
	if set[trace.Sandbox] != "a" || set[trace.Sandboxer] != "memory" || set[trace.Pod] != "default/web" {
		t.Errorf("attributes %v", set)
	}
	if s := r.Find("sandbox.Update").Status(); s.Description == "" {
		t.Error("a call that fails does not say so")
	}
	if s := r.Find("sandbox.Start").Status(); s.Description != "" {
		t.Errorf("status %+v", s)
	}
}
