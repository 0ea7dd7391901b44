package artifact

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of the OCI Wasm artifact format.
const (
	configType = "application/vnd.wasm.config.v0+json"
	moduleType = "application/wasm"
)

// Module is where a container of an artifact has the module.
const Module = "/module.wasm"

// maxConfig bounds an artifact's config, in bytes: it is some fields, and in a
// component's case names of interfaces.
const maxConfig = 1 << 20

// The image's manifest names the artifact's: in an annotation, which makes images
// of different artifacts differ, and in a label, which keeps the artifact from
// being collected.
const (
	source = "io.kuasar.wasm.artifact"
	origin = "containerd.io/gc.ref.content.artifact"
)

// convert returns the manifest of an image for what desc is the manifest of: its
// own if that is an image for Wasm, a new one if it is an artifact, and nil if
// it is neither.
func convert(ctx context.Context, store content.Store, desc imagespec.Descriptor) (*imagespec.Descriptor, error) {
	var manifest imagespec.Manifest
	if err := read(ctx, store, desc, &manifest); err != nil {
		return nil, err
	}
	if !artifact(manifest) {
		if !images.IsConfigType(manifest.Config.MediaType) {
			return nil, nil
		}
		p, err := images.ConfigPlatform(ctx, store, manifest.Config)
		if err != nil || !wasm(p) {
			return nil, err
		}
		return &desc, nil
	}
	if n := len(manifest.Layers); n != 1 || manifest.Layers[0].MediaType != moduleType {
		return nil, fmt.Errorf("artifact has %d layers: it must have one, of type %s: %w", n, moduleType, errdefs.ErrInvalidArgument)
	}
	if manifest.Config.Size > maxConfig {
		return nil, fmt.Errorf("config has %d bytes, more than %d: %w", manifest.Config.Size, maxConfig, errdefs.ErrInvalidArgument)
	}
	config, err := makeConfig(ctx, store, manifest)
	if err != nil {
		return nil, err
	}
	return makeManifest(ctx, store, desc.Digest, config, manifest.Layers[0])
}

func artifact(m imagespec.Manifest) bool {
	return m.Config.MediaType == configType || len(m.Layers) > 0 && m.Layers[0].MediaType == moduleType
}

// makeConfig writes the image's config. What it shares with an image's
// (platform, author, time) comes from the artifact's; where that is an image's
// config, so do environment and arguments.
func makeConfig(ctx context.Context, store content.Store, manifest imagespec.Manifest) (imagespec.Descriptor, error) {
	var config imagespec.Image
	if err := read(ctx, store, manifest.Config, &config); err != nil {
		return imagespec.Descriptor{}, err
	}
	if !wasm(config.Platform) {
		config.Platform = imagespec.Platform{OS: "wasip1", Architecture: "wasm"}
	}
	id, err := diffID(ctx, store, manifest.Layers[0])
	if err != nil {
		return imagespec.Descriptor{}, err
	}
	config.Config.Entrypoint = []string{Module}
	config.RootFS = imagespec.RootFS{Type: "layers", DiffIDs: []digest.Digest{id}}
	config.History = nil
	return write(ctx, store, imagespec.MediaTypeImageConfig, config, nil)
}

func makeManifest(ctx context.Context, store content.Store, artifact digest.Digest, config, module imagespec.Descriptor) (*imagespec.Descriptor, error) {
	manifest := imagespec.Manifest{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   imagespec.MediaTypeImageManifest,
		Config:      config,
		Layers:      []imagespec.Descriptor{{MediaType: layerType, Digest: module.Digest, Size: module.Size}},
		Annotations: map[string]string{source: artifact.String()},
	}
	desc, err := write(ctx, store, manifest.MediaType, manifest, map[string]string{
		origin:                                artifact.String(),
		"containerd.io/gc.ref.content.config": config.Digest.String(),
		"containerd.io/gc.ref.content.l.0":    module.Digest.String(),
	})
	if err != nil {
		return nil, err
	}
	return &desc, nil
}

// diffID is the digest of what the module's layer unpacks as.
func diffID(ctx context.Context, store content.Store, module imagespec.Descriptor) (digest.Digest, error) {
	blob, err := store.ReaderAt(ctx, module)
	if err != nil {
		return "", fmt.Errorf("read module: %w", err)
	}
	defer blob.Close()
	digester := digest.Canonical.Digester()
	if err := pack(digester.Hash(), io.NewSectionReader(blob, 0, blob.Size()), blob.Size()); err != nil {
		return "", fmt.Errorf("read module: %w", err)
	}
	return digester.Digest(), nil
}

func read(ctx context.Context, store content.Store, desc imagespec.Descriptor, v any) error {
	raw, err := content.ReadBlob(ctx, store, desc)
	if err == nil {
		err = json.Unmarshal(raw, v)
	}
	if err != nil {
		return fmt.Errorf("read %s %s: %w", desc.MediaType, desc.Digest, err)
	}
	return nil
}

func write(ctx context.Context, store content.Store, mediaType string, v any, labels map[string]string) (imagespec.Descriptor, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return imagespec.Descriptor{}, err
	}
	desc := imagespec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if err := content.WriteBlob(ctx, store, "wasm-"+desc.Digest.String(), bytes.NewReader(raw), desc, content.WithLabels(labels)); err != nil {
		return imagespec.Descriptor{}, fmt.Errorf("write %s: %w", mediaType, err)
	}
	return desc, nil
}
