package artifact

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

func store(t *testing.T) (context.Context, content.Store) {
	t.Helper()
	dir := t.TempDir()
	blobs, err := local.NewStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(filepath.Join(dir, "db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return namespaces.WithNamespace(t.Context(), "test"), metadata.NewDB(db, blobs, nil).ContentStore()
}

func put(t *testing.T, ctx context.Context, s content.Store, mediaType, data string) imagespec.Descriptor {
	t.Helper()
	desc := imagespec.Descriptor{MediaType: mediaType, Digest: digest.FromString(data), Size: int64(len(data))}
	if err := content.WriteBlob(ctx, s, desc.Digest.String(), strings.NewReader(data), desc); err != nil {
		t.Fatal(err)
	}
	return desc
}

func manifest(t *testing.T, ctx context.Context, s content.Store, config imagespec.Descriptor, layers ...imagespec.Descriptor) imagespec.Descriptor {
	t.Helper()
	raw, err := json.Marshal(imagespec.Manifest{MediaType: imagespec.MediaTypeImageManifest, Config: config, Layers: layers})
	if err != nil {
		t.Fatal(err)
	}
	return put(t, ctx, s, imagespec.MediaTypeImageManifest, string(raw))
}

func TestConvert(t *testing.T) {
	ctx, s := store(t)
	module := put(t, ctx, s, moduleType, "\x00asm and more")
	for name, test := range map[string]struct {
		config   imagespec.Descriptor
		platform string
		cmd      string
	}{
		"artifact":      {put(t, ctx, s, configType, `{"os":"wasip2","architecture":"wasm","layerDigests":["x"],"component":{"exports":[]}}`), "wasip2/wasm", ""},
		"no platform":   {put(t, ctx, s, configType, `{}`), "wasip1/wasm", ""},
		"image config":  {put(t, ctx, s, imagespec.MediaTypeImageConfig, `{"os":"wasi","architecture":"wasm","config":{"Entrypoint":["other"],"Cmd":["serve"]},"rootfs":{"type":"layers"}}`), "wasi/wasm", "serve"},
		"empty config":  {put(t, ctx, s, imagespec.MediaTypeEmptyJSON, `{}`), "wasip1/wasm", ""},
		"other's claim": {put(t, ctx, s, configType, `{"os":"linux","architecture":"amd64"}`), "wasip1/wasm", ""},
	} {
		t.Run(name, func(t *testing.T) {
			source := manifest(t, ctx, s, test.config, module)
			target, err := convert(ctx, s, source)
			if err != nil {
				t.Fatal(err)
			}
			again, err := convert(ctx, s, source)
			if err != nil || again.Digest != target.Digest {
				t.Errorf("the second time: %v, %v", again, err)
			}
			var m imagespec.Manifest
			var config imagespec.Image
			if err := errors.Join(read(ctx, s, *target, &m), read(ctx, s, m.Config, &config)); err != nil {
				t.Fatal(err)
			}
			if got := config.OS + "/" + config.Architecture; got != test.platform {
				t.Errorf("platform %s, want %s", got, test.platform)
			}
			if got := strings.Join(config.Config.Entrypoint, " "); got != Module {
				t.Errorf("entrypoint %q", got)
			}
			if got := strings.Join(config.Config.Cmd, " "); got != test.cmd {
				t.Errorf("arguments %q", got)
			}
			if len(m.Layers) != 1 || m.Layers[0].Digest != module.Digest || m.Layers[0].MediaType != layerType {
				t.Errorf("layers %v", m.Layers)
			}
			layer := unpacked(t, ctx, "\x00asm and more")
			if got := digest.FromBytes(layer); len(config.RootFS.DiffIDs) != 1 || config.RootFS.DiffIDs[0] != got {
				t.Errorf("diff ids %v, the layer is %s", config.RootFS.DiffIDs, got)
			}
			info, err := s.Info(ctx, target.Digest)
			if err != nil || info.Labels[origin] != source.Digest.String() {
				t.Errorf("the artifact is not kept: %v, %v", info.Labels, err)
			}
		})
	}
}

func TestConvertLeavesImages(t *testing.T) {
	ctx, s := store(t)
	layer := put(t, ctx, s, imagespec.MediaTypeImageLayer, "layer")
	wasi := manifest(t, ctx, s, put(t, ctx, s, imagespec.MediaTypeImageConfig, `{"os":"wasi","architecture":"wasm"}`), layer)
	if got, err := convert(ctx, s, wasi); err != nil || got == nil || got.Digest != wasi.Digest {
		t.Errorf("an image for Wasm: %v, %v", got, err)
	}
	for name, config := range map[string]imagespec.Descriptor{
		"for Linux":        put(t, ctx, s, imagespec.MediaTypeImageConfig, `{"os":"linux","architecture":"amd64"}`),
		"another artifact": put(t, ctx, s, "application/vnd.example", `{}`),
	} {
		if got, err := convert(ctx, s, manifest(t, ctx, s, config, layer)); err != nil || got != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestConvertRefuses(t *testing.T) {
	ctx, s := store(t)
	config := put(t, ctx, s, configType, `{}`)
	module := put(t, ctx, s, moduleType, "module")
	large := config
	large.Size = maxConfig + 1
	for name, m := range map[string]imagespec.Descriptor{
		"no module":    manifest(t, ctx, s, config),
		"two modules":  manifest(t, ctx, s, config, module, module),
		"another type": manifest(t, ctx, s, config, put(t, ctx, s, imagespec.MediaTypeImageLayer, "layer")),
		"large config": manifest(t, ctx, s, large, module),
	} {
		if got, err := convert(ctx, s, m); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for name, m := range map[string]imagespec.Descriptor{
		"broken config": manifest(t, ctx, s, put(t, ctx, s, configType, `{"os":`), module),
		"lost module":   manifest(t, ctx, s, config, imagespec.Descriptor{MediaType: moduleType, Digest: digest.FromString("lost"), Size: 4}),
	} {
		if got, err := convert(ctx, s, m); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// unpacked is what a module is turned into when its layer is unpacked.
func unpacked(t *testing.T, ctx context.Context, module string) []byte {
	t.Helper()
	p, err := unpackLayer(ctx, diff.NewProcessorChain(layerType, strings.NewReader(module)), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.MediaType() != imagespec.MediaTypeImageLayer {
		t.Errorf("a layer of type %s", p.MediaType())
	}
	raw, err := io.ReadAll(p)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestUnpackLayer(t *testing.T) {
	for _, module := range []string{"", "m", strings.Repeat("module", 100000)} {
		archive := tar.NewReader(bytes.NewReader(unpacked(t, t.Context(), module)))
		header, err := archive.Next()
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(archive)
		if err != nil || string(data) != module || "/"+header.Name != Module {
			t.Errorf("%s has %d bytes of %d: %v", header.Name, len(data), len(module), err)
		}
		if _, err := archive.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("after it: %v", err)
		}
	}
}

// TestUnpackLayerThatIsNotRead holds that a reader may leave off.
func TestUnpackLayerThatIsNotRead(t *testing.T) {
	p, err := unpackLayer(t.Context(), diff.NewProcessorChain(layerType, strings.NewReader(strings.Repeat("m", 1<<20))), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Read(make([]byte, 1)); err == nil {
		t.Error("a closed layer is read")
	}
}
