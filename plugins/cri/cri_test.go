package cri

import (
	"context"
	"testing"
	"time"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/sandboxtest"
)

// forgetful is a CRI service that has just restarted.
type forgetful struct {
	runtime.UnimplementedRuntimeServiceServer
}

func (forgetful) ListPodSandbox(context.Context, *runtime.ListPodSandboxRequest) (*runtime.ListPodSandboxResponse, error) {
	return &runtime.ListPodSandboxResponse{Items: []*runtime.PodSandbox{{Id: "ours"}, {Id: "stock", CreatedAt: 1}}}, nil
}

// grpcServer and its sibling have the shape of plugins/cri's instances.
type grpcServer struct{ runtime.RuntimeServiceServer }

type grpcServerWithTCP struct{ *grpcServer }

func TestMend(t *testing.T) {
	ctx := namespaces.WithNamespace(t.Context(), "test")
	c, err := sandbox.New(ctx, sandbox.Config{Name: "memory", Dir: t.TempDir(), Backend: &sandboxtest.Memory{}})
	if err != nil {
		t.Fatal(err)
	}
	before := time.Now().UnixNano()
	if err := c.Create(ctx, core.Sandbox{ID: "ours"}, core.WithOptions(&runtime.PodSandboxConfig{})); err != nil {
		t.Fatal(err)
	}
	inner := &grpcServer{forgetful{}}
	for name, instance := range map[string]runtime.RuntimeServiceServer{
		"plain":    &grpcServer{forgetful{}},
		"with TCP": grpcServerWithTCP{inner},
	} {
		t.Run(name, func(t *testing.T) {
			if err := mend(instance, []*sandbox.Controller{c}); err != nil {
				t.Fatal(err)
			}
			list, err := instance.ListPodSandbox(ctx, nil)
			if err != nil {
				t.Fatal(err)
			}
			if at := list.Items[0].CreatedAt; at < before || at > time.Now().UnixNano() {
				t.Errorf("our pod was made at %d", at)
			}
			if at := list.Items[1].CreatedAt; at != 1 {
				t.Errorf("the stock pod was made at %d", at)
			}
		})
	}
}

func TestMendNamesWhatHasMoved(t *testing.T) {
	for _, instance := range []any{struct{}{}, &struct{ RuntimeServiceServer int }{}, grpcServerWithTCP{}} {
		if err := mend(instance, nil); err == nil {
			t.Errorf("%T was mended", instance)
		}
	}
}
