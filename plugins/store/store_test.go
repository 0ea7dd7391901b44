package store

import (
	"context"
	"testing"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
)

// fixed is a store with some sandboxes.
type fixed struct {
	core.Store
	all []core.Sandbox
}

func (f fixed) Get(context.Context, string) (core.Sandbox, error) { return f.all[0], nil }

func (f fixed) List(context.Context, ...string) ([]core.Sandbox, error) { return f.all, nil }

func TestOptions(t *testing.T) {
	for name, keeps := range map[string]bool{sandbox.RuntimeType: false, "io.containerd.runc.v2": true} {
		box := core.Sandbox{ID: "box", Runtime: core.RuntimeOpts{Name: name, Options: &anypb.Any{Value: []byte("options")}}}
		s := store{fixed{all: []core.Sandbox{box}}}
		got, err := s.Get(t.Context(), "box")
		if err != nil || (got.Runtime.Options != nil) != keeps || got.Runtime.Name != name || got.ID != "box" {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
		all, err := s.List(t.Context())
		if err != nil || len(all) != 1 || (all[0].Runtime.Options != nil) != keeps {
			t.Errorf("%s: listed %+v, %v", name, all, err)
		}
	}
}
