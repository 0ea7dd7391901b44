package runc

import (
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/sandboxtest"
)

func TestConformance(t *testing.T) {
	for name, o := range map[string]*runtime.NamespaceOption{
		"own processes":    {Network: nodeMode, Pid: ownMode},
		"shared processes": {Network: nodeMode},
		"user namespace":   {Network: nodeMode, Pid: ownMode, UsernsOptions: user(100000)},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			c := config(o)
			c.Linux.CgroupParent = group
			sandboxtest.Run(t, sandboxtest.Suite{
				Config: c,
				Backend: func(t *testing.T) sandbox.Backend {
					must(t, n.worker.Close())
					n.boot()
					return n.backend
				},
			})
		})
	}
}
