package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// readSpec reads a bundle's config.json.
func readSpec(bundle string) (*specs.Spec, error) {
	if !filepath.IsAbs(bundle) {
		return nil, fmt.Errorf("bundle %q is not an absolute path: %w", bundle, errdefs.ErrInvalidArgument)
	}
	path := filepath.Join(bundle, "config.json")
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s is missing: %s is not an OCI bundle: %w", path, bundle, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("read spec: %w", err)
	}
	spec := &specs.Spec{}
	if err := json.Unmarshal(b, spec); err != nil {
		return nil, fmt.Errorf("spec %s: %w: %w", path, err, errdefs.ErrInvalidArgument)
	}
	if spec.Process == nil {
		return nil, fmt.Errorf("spec %s has no process: %w", path, errdefs.ErrInvalidArgument)
	}
	return spec, nil
}

// sharesPID says whether the container's processes live in another's pid
// namespace, where the exit of the first one does not end the others.
func sharesPID(spec *specs.Spec) bool {
	if spec.Linux != nil {
		for _, ns := range spec.Linux.Namespaces {
			if ns.Type == specs.PIDNamespace {
				return ns.Path != ""
			}
		}
	}
	return true
}
