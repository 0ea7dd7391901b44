package images

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/containerd-kuasar/containerd-kuasar/test/registry"
)

// programs writes stand-ins: what the images are named and made of does not
// depend on what the programs do.
func programs(t *testing.T) string {
	t.Helper()
	build := t.TempDir()
	dir := filepath.Join(build, "images")
	for _, sub := range []string{"images", "modules"} {
		if err := os.Mkdir(filepath.Join(build, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{
		"busybox", "web", "privs", "pause", "../modules/probe.wasm", "../modules/hello.wasm", "../modules/gofmt.wasm", "../modules/box.wasm", "../modules/probe", "../modules/compute",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "shell/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestAdd(t *testing.T) {
	r, err := registry.Listen()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	dir := programs(t)
	if err := Add(r, filepath.Join(dir, "busybox"), dir); err != nil {
		t.Fatal(err)
	}
	names := r.Names()
	for _, name := range []string{Busybox, Web, User, Pause, cri + "test-image-tags:3", "k8s.gcr.io/pause:3.9", Probe, ProbeBoth} {
		if !slices.Contains(names, name) {
			t.Errorf("no image %s", name)
		}
	}
}

func TestAddNamesWhatIsMissing(t *testing.T) {
	r, err := registry.Listen()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	if err := Add(r, "/nonexistent/busybox", programs(t)); err == nil {
		t.Error("an image without busybox is built")
	}
}

// The digest is compiled into critest: a change of what the image is made of
// must change the constant with it.
func TestPinned(t *testing.T) {
	r, err := registry.Listen()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	b := builder{registry: r}
	got, err := r.Add(cri+"test-image-digest:latest", command("/true"), b.named("test-image-digest:latest"))
	if err != nil {
		t.Fatal(err)
	}
	if got != digest.Digest(Pinned) {
		t.Errorf("the pinned image's digest is %s, Pinned says %s", got, Pinned)
	}
}
