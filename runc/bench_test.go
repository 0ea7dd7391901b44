package runc

import (
	"os"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// BenchmarkPod is the life of an empty pod, the worker running.
func BenchmarkPod(b *testing.B) {
	for name, o := range map[string]*runtime.NamespaceOption{
		"own-processes":    {Network: nodeMode, Pid: ownMode},
		"shared-processes": {Network: nodeMode, Pid: podMode},
	} {
		b.Run(name, func(b *testing.B) {
			n := newNode(b)
			ctx, cancel := n.ctx()
			defer cancel()
			if _, err := n.worker.Agent(ctx); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				p := n.create(n.spec(config(o), ""))
				ctx, cancel := n.ctx()
				must(b, p.Start(ctx))
				must(b, p.Stop(ctx))
				must(b, p.Delete(ctx))
				cancel()
				must(b, os.RemoveAll(p.spec.Dir))
			}
		})
	}
}
