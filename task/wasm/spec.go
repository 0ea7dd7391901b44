package wasm

import (
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// settle makes the paths of a spec absolute, and refuses what would give a
// module less than the spec asks for without a word.
func settle(bundle string, spec *specs.Spec, process *specs.Process) error {
	invalid := func(text string) error { return fmt.Errorf("%s: %w", text, errdefs.ErrInvalidArgument) }
	switch {
	case spec.Root == nil || spec.Root.Path == "":
		return invalid("spec has no root.path")
	case len(process.Args) == 0:
		return invalid("spec has no process.args: name a module")
	case !filepath.IsAbs(process.Cwd):
		return invalid(fmt.Sprintf("process.cwd %q is not absolute", process.Cwd))
	}
	if !filepath.IsAbs(spec.Root.Path) {
		spec.Root.Path = filepath.Join(bundle, spec.Root.Path)
	}
	if spec.Linux == nil {
		return nil
	}
	for _, ns := range spec.Linux.Namespaces {
		switch {
		case ns.Type == specs.UserNamespace:
			return invalid("a module has no user namespace: take it out of linux.namespaces")
		case ns.Type == specs.NetworkNamespace && ns.Path == "":
			return invalid("a module is put into the network namespace of its pod: give the path of one")
		}
	}
	return nil
}
