package artifact

import (
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

// systems are the operating systems of Wasm images, the one that most engines
// run first. "wasi" is what image builders write who know of no previews.
var systems = []string{"wasip1", "wasi", "wasip2"}

// wasm says whether a platform is WebAssembly with WASI.
func wasm(p imagespec.Platform) bool {
	return (p.Architecture == "wasm" || p.Architecture == "wasm32") && slices.Contains(systems, p.OS)
}

// choose takes the Wasm manifest of an index that a pull for some platforms
// wants; a pull for none is for all. It finds none where the choice is the
// stock one.
func choose(manifests []imagespec.Descriptor, wanted []imagespec.Platform, prefer bool) (imagespec.Descriptor, bool) {
	if len(wanted) == 0 {
		return imagespec.Descriptor{}, false
	}
	var ours []imagespec.Descriptor
	match := platforms.Any(wanted...)
	for _, m := range manifests {
		switch {
		case !images.IsManifestType(m.MediaType) || m.Platform == nil:
		case wasm(*m.Platform):
			ours = append(ours, m)
		case match.Match(*m.Platform) && !prefer:
			return imagespec.Descriptor{}, false
		}
	}
	if len(ours) == 0 {
		return imagespec.Descriptor{}, false
	}
	rank := func(m imagespec.Descriptor) int {
		if match.Match(*m.Platform) {
			return -1
		}
		return slices.Index(systems, m.Platform.OS)
	}
	return slices.MinFunc(ours, func(a, b imagespec.Descriptor) int { return rank(a) - rank(b) }), true
}
