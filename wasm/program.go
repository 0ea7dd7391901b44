package wasm

import (
	"fmt"
	"os"

	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/internal/binary"
	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/engine"
)

// Programs are paths of engines that are programs of their own. An empty one is
// looked for, each time that it is needed: see binary.Find.
type Programs struct{ Wasmtime, WasmEdge string }

// Find returns the path of an engine's program, empty for one that needs none.
func (p Programs) Find(name string) (string, error) {
	switch name {
	case engine.Wasmtime:
		return find("kuasar-wasmtime", "wasmtime", p.Wasmtime)
	case engine.WasmEdge:
		return find("wasmedge", "wasmedge", p.WasmEdge)
	}
	return "", nil
}

func find(name, key, path string) (string, error) {
	if path != "" {
		_, err := os.Stat(path)
		if err == nil {
			return path, nil
		}
		return "", fmt.Errorf("%s = %q: %w: %w", key, path, err, errdefs.ErrFailedPrecondition)
	}
	path, err := binary.Find(name)
	if err == nil {
		return path, nil
	}
	return "", fmt.Errorf("%s is neither beside the daemon's binary nor in PATH: install it, or set %s below [plugins.'io.containerd.sandbox.controller.v1.wasm']: %w",
		name, key, errdefs.ErrFailedPrecondition)
}
