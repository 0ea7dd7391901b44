package sandboxtest

import (
	"context"

	"github.com/containerd/typeurl/v2"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
)

// Extras are what the sandboxes of a Memory answer to what is optional.
type Extras struct {
	Panic    bool // instead of every answer but those of hooks
	PID      uint32
	Spec     *specs.Spec
	System   imagespec.Platform
	Address  string
	Version  uint32
	OnStats  func(ctx context.Context) (typeurl.Any, error)
	OnUpdate func(ctx context.Context, r sandbox.Resources) error
}

// Full is a Box with all that is optional.
type Full struct {
	*Box
	extras *Extras
}

var (
	_ sandbox.Processer  = (*Full)(nil)
	_ sandbox.Specer     = (*Full)(nil)
	_ sandbox.Statser    = (*Full)(nil)
	_ sandbox.Updater    = (*Full)(nil)
	_ sandbox.Platformer = (*Full)(nil)
	_ sandbox.Endpointer = (*Full)(nil)
)

// Pid implements sandbox.Processer.
func (f *Full) Pid() uint32 { return f.answers().PID }

func (f *Full) answers() *Extras {
	if f.extras.Panic {
		panic("injected")
	}
	return f.extras
}

// OCI implements sandbox.Specer.
func (f *Full) OCI() *specs.Spec { return f.answers().Spec }

// Platform implements sandbox.Platformer.
func (f *Full) Platform() imagespec.Platform { return f.answers().System }

// Endpoint implements sandbox.Endpointer.
func (f *Full) Endpoint() (address string, version uint32) {
	return f.answers().Address, f.extras.Version
}

// Stats implements sandbox.Statser.
func (f *Full) Stats(ctx context.Context) (typeurl.Any, error) { return f.extras.OnStats(ctx) }

// Update implements sandbox.Updater.
func (f *Full) Update(ctx context.Context, r sandbox.Resources) error {
	return f.extras.OnUpdate(ctx, r)
}
