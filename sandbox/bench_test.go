package sandbox_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/sandboxtest"
)

// pods makes pods as a kubelet describes them.
type pods struct {
	*sandbox.Controller
	testing.TB
	ctx context.Context
}

func newPods(b *testing.B) *pods {
	b.Helper()
	p := &pods{TB: b, ctx: namespaces.WithNamespace(b.Context(), "k8s.io")}
	var err error
	p.Controller, err = sandbox.New(p.ctx, sandbox.Config{Name: "memory", Dir: b.TempDir(), Backend: &forgetful{}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Close() })
	return p
}

func (p *pods) start(id string) {
	p.Helper()
	config := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: id, Uid: id, Namespace: "default"},
		Hostname:     id,
		LogDirectory: "/var/log/pods/default_" + id,
		Labels:       map[string]string{"app": "web", "io.kubernetes.pod.name": id, "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": id},
		Annotations:  map[string]string{"kubernetes.io/config.source": "api", "last-applied": strings.Repeat("x", 1<<10)},
		Linux:        &cri.LinuxPodSandboxConfig{CgroupParent: "/kubepods/pod" + id, SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{}}},
	}
	metadata := &anypb.Any{Value: []byte(`{"Version":"v1","Metadata":{"Config":"` + strings.Repeat("x", 2<<10) + `"}}`)}
	err := p.Create(p.ctx, core.Sandbox{ID: id, Labels: map[string]string{"name": id + "_default_0"}, Extensions: map[string]typeurl.Any{"metadata": metadata}},
		core.WithOptions(config))
	if err == nil {
		_, err = p.Start(p.ctx, id)
	}
	if err != nil {
		p.Fatal(err)
	}
}

func (p *pods) end(id string) {
	p.Helper()
	if err := p.Stop(p.ctx, id); err != nil {
		p.Fatal(err)
	}
	if err := p.Shutdown(p.ctx, id); err != nil {
		p.Fatal(err)
	}
}

// forgetful is Memory without a list of what it made, whose memory would count.
type forgetful struct{ sandbox.Backend }

func (*forgetful) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	spec.Config = nil // as a backend should
	return (&sandboxtest.Memory{}).Create(ctx, spec)
}

// BenchmarkLife is what the framework adds to a pod's life, on nodes with that
// many others.
func BenchmarkLife(b *testing.B) {
	for _, others := range []int{0, 200, 1000} {
		b.Run(fmt.Sprintf("others=%d", others), func(b *testing.B) {
			p := newPods(b)
			for i := range others {
				p.start(fmt.Sprintf("other%d", i))
			}
			for b.Loop() {
				p.start("pod")
				p.end("pod")
			}
			b.StopTimer()
			for i := range others {
				p.end(fmt.Sprintf("other%d", i))
			}
		})
	}
}

// BenchmarkIdle is what the framework keeps in memory of a pod that runs.
func BenchmarkIdle(b *testing.B) {
	p := newPods(b)
	used := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	p.start("first")
	before := used()
	for i := range b.N {
		p.start(fmt.Sprintf("pod%d", i))
	}
	b.ReportMetric(float64(used()-before)/float64(b.N), "B/pod")
	b.StopTimer()
	for i := range b.N {
		p.end(fmt.Sprintf("pod%d", i))
	}
	p.end("first")
}
