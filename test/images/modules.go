package images

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/registry"
)

// Images of test/modules/probe, in all the ways that a module is shipped.
const (
	Probe         = wasm + "probe:1"        // an ordinary image with the modules of test/modules in its root
	ProbeWasi     = wasm + "probe:wasi"     // the same for the platform wasi/wasm, in an index
	ProbeArtifact = wasm + "probe:artifact" // an OCI Wasm artifact
	ProbeBoth     = wasm + "probe:both"     // an index of the artifact and of an image for Linux
	ProbeBroken   = wasm + "probe:broken"   // an artifact with two modules, which is one too many
	Gofmt         = wasm + "gofmt:artifact" // a program of some MB
	Box           = wasm + "box:1"          // test/modules/box as a shell and tools, for critest
	Native        = wasm + "native:1"       // the programs probe and compute for this host
)

const wasm = "example.org/wasm/"

// modules adds the images of what hack/modules builds.
func (b *builder) modules(dir string) {
	dir = filepath.Join(dir, "../modules")
	paths, err := filepath.Glob(filepath.Join(dir, "*.wasm"))
	if err == nil && len(paths) == 0 {
		err = fmt.Errorf("no modules in %s: run hack/modules", dir)
	}
	if err != nil && b.err == nil {
		b.err = err
	}
	var files []file
	for _, path := range paths {
		if name := filepath.Base(path); name != "gofmt.wasm" && name != "box.wasm" { // they have images of their own
			files = append(files, file{path: name, mode: 0o755, data: b.read(path)})
		}
	}
	// A text, a module that is cut short, and a program for Linux.
	probe := b.read(filepath.Join(dir, "probe.wasm"))
	files = append(files, file{path: "text.wasm", data: []byte("This is no module.\n")},
		file{path: "short.wasm", data: probe[:len(probe)/2]}, file{path: "program", mode: 0o755, data: []byte(trueProgram)},
		file{path: "data/file", data: []byte("in the image\n")}, file{path: "tmp/", mode: 0o1777})
	layer := b.pack(files...)
	b.add(Probe, module(imagespec.Platform{OS: "linux", Architecture: "amd64"}), layer)
	wasi := b.image(module(imagespec.Platform{OS: "wasi", Architecture: "wasm"}), layer)
	b.tag(ProbeWasi, b.index(wasi))

	artifact := b.artifact(filepath.Join(dir, "probe.wasm"))
	b.tag(ProbeArtifact, artifact)
	b.tag(ProbeBoth, b.index(b.image(command("sh"), b.base), artifact))
	b.tag(ProbeBroken, b.artifact(filepath.Join(dir, "probe.wasm"), filepath.Join(dir, "hello.wasm")))
	b.tag(Gofmt, b.artifact(filepath.Join(dir, "gofmt.wasm")))
	b.add(Box, command("sh"), b.pack(b.box(filepath.Join(dir, "box.wasm"))...))
	b.add(Native, command("/probe"), b.pack(b.program(dir, "probe", "probe", 0o755), b.program(dir, "compute", "compute", 0o755)))
}

// box is a root file system like busybox's, of a module. Critest asks for the
// tools by name, and one of them by path.
func (b *builder) box(path string) []file {
	files := []file{
		{path: "bin/"}, {path: "etc/"}, {path: "home/"}, {path: "root/", mode: 0o700}, {path: "tmp/", mode: 0o1777},
		{path: "etc/passwd", data: []byte(passwd)}, {path: "etc/group", data: []byte(group)},
		{path: "bin/sh", mode: 0o755, data: b.read(path)},
	}
	for _, tool := range []string{"cat", "echo", "ls", "sleep", "top", "touch"} {
		files = append(files, file{path: "bin/" + tool, mode: 0o755, link: "bin/sh"})
	}
	return files
}

// module is the config of an image that runs the probe.
func module(p imagespec.Platform) imagespec.Image {
	return imagespec.Image{Created: &epoch, Platform: p, Config: imagespec.ImageConfig{
		Entrypoint: []string{"/probe.wasm"}, Env: []string{"FROM=image"}, WorkingDir: "/data",
	}}
}

// artifact stores modules as the OCI artifact format for Wasm has it.
func (b *builder) artifact(paths ...string) imagespec.Descriptor {
	config, err := json.Marshal(map[string]any{
		"created": epoch, "author": "test/images", "os": "wasip1", "architecture": "wasm",
		"layerDigests": []string{},
	})
	if err != nil && b.err == nil {
		b.err = err
	}
	var layers []registry.Blob
	for _, path := range paths {
		layers = append(layers, registry.Blob{MediaType: "application/wasm", Data: b.read(path)})
	}
	desc := b.desc(b.registry.Manifest(registry.Blob{MediaType: "application/vnd.wasm.config.v0+json", Data: config}, layers...))
	desc.Platform = &imagespec.Platform{OS: "wasip1", Architecture: "wasm"}
	return desc
}

func (b *builder) image(config imagespec.Image, layers ...registry.Layer) imagespec.Descriptor {
	return b.desc(b.registry.Image(config, layers...))
}

func (b *builder) index(manifests ...imagespec.Descriptor) imagespec.Descriptor {
	return b.desc(b.registry.Index(manifests...))
}

func (b *builder) tag(name string, desc imagespec.Descriptor) {
	if b.err == nil {
		b.err = b.registry.Tag(name, desc)
	}
}

func (b *builder) desc(desc imagespec.Descriptor, err error) imagespec.Descriptor {
	if err != nil && b.err == nil {
		b.err = err
	}
	return desc
}

func (b *builder) read(path string) []byte {
	data, err := os.ReadFile(path)
	if err != nil && b.err == nil {
		b.err = fmt.Errorf("read module: %w (run hack/modules)", err)
	}
	return data
}
