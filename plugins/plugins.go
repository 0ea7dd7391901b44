// Package plugins puts our plugins into containerd's registry.
package plugins

import (
	"errors"

	"github.com/containerd-kuasar/containerd-kuasar/plugins/artifact"
	"github.com/containerd-kuasar/containerd-kuasar/plugins/cri"
	_ "github.com/containerd-kuasar/containerd-kuasar/plugins/runc" // registers the sandboxer
	"github.com/containerd-kuasar/containerd-kuasar/plugins/store"
	"github.com/containerd-kuasar/containerd-kuasar/plugins/tasks"
	_ "github.com/containerd-kuasar/containerd-kuasar/plugins/traces" // registers the service
	_ "github.com/containerd-kuasar/containerd-kuasar/plugins/vmm"    // registers the sandboxer
	_ "github.com/containerd-kuasar/containerd-kuasar/plugins/wasm"   // registers the sandboxer
)

// Register wraps those of containerd's plugins that we wrap. Call it after all
// plugins have registered, that is from main, and before containerd's App runs.
func Register() error {
	return errors.Join(tasks.Register(), cri.Register(), artifact.Register(), store.Register())
}
