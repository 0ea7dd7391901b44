package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/image-spec/identity"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/engine"
	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
	"github.com/containerd-kuasar/containerd-kuasar/test/images"
)

// TestPullModules pulls Wasm in all the ways that it is shipped, and looks at
// what containers of it will have as root file system.
func TestPullModules(t *testing.T) {
	b := newBed(t, bed.Options{})
	n := on(t, b, bed.Runc)
	hosts := filepath.Join(b.Dir, "hosts")
	const forWasm = "io.containerd.cri.runtime-handler=kuasar-wasm"
	for _, test := range []struct {
		name  string
		pull  func()
		image string
		file  string // of the image, "" if it is for Linux
	}{
		{"crictl, image", func() { n.crictl("pull", images.Probe) }, images.Probe, "/probe.wasm"},
		{"crictl, wasi/wasm in an index", func() { n.crictl("pull", images.ProbeWasi) }, images.ProbeWasi, "/probe.wasm"},
		{"crictl, artifact", func() { n.crictl("pull", images.ProbeArtifact) }, images.ProbeArtifact, "/module.wasm"},
		{"crictl, artifact again", func() { n.crictl("pull", images.ProbeArtifact) }, images.ProbeArtifact, "/module.wasm"},
		{"crictl, both", func() { n.crictl("pull", images.ProbeBoth) }, images.ProbeBoth, ""},
		{"crictl, both for a Wasm pod", func() { n.crictl("pull", "--annotation", forWasm, images.ProbeBoth) }, images.ProbeBoth, "/module.wasm"},
		{"kubelet, both for a Wasm pod", func() {
			_, err := n.Images.PullImage(n.ctx, &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: images.ProbeBoth, RuntimeHandler: "kuasar-wasm"}})
			n.must(err)
		}, images.ProbeBoth, "/module.wasm"},
		{"kubelet, both for another pod", func() {
			_, err := n.Images.PullImage(n.ctx, &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: images.ProbeBoth, RuntimeHandler: "kuasar-runc"}})
			n.must(err)
		}, images.ProbeBoth, ""},
		{"ctr, artifact", func() { n.ctr("images", "pull", "--hosts-dir", hosts, images.ProbeArtifact) }, images.ProbeArtifact, "/module.wasm"},
		{"ctr, wasi/wasm in an index", func() { n.ctr("images", "pull", "--hosts-dir", hosts, "--platform", "wasi/wasm", images.ProbeWasi) }, images.ProbeWasi, "/probe.wasm"},
		{"ctr, both", func() { n.ctr("images", "pull", "--hosts-dir", hosts, images.ProbeBoth) }, images.ProbeBoth, ""},
		{"ctr, both for wasip1/wasm", func() { n.ctr("images", "pull", "--hosts-dir", hosts, "--platform", "wasip1/wasm", images.ProbeBoth) }, images.ProbeBoth, "/module.wasm"},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := on(t, b, bed.Runc)
			test.pull()
			if test.file == "" {
				rootfs(n, test.image, "/bin/busybox")
				return
			}
			want, err := os.ReadFile(b.Path("build/modules/probe.wasm"))
			n.must(err)
			if got := rootfs(n, test.image, test.file); got != string(want) {
				t.Errorf("%s has %d bytes, the module %d", test.file, len(got), len(want))
			}
		})
	}
}

// TestArtifactImage looks at the image that is made of an artifact.
func TestArtifactImage(t *testing.T) {
	b := newBed(t, bed.Options{})
	n := on(t, b, bed.Runc)
	n.crictl("pull", images.ProbeArtifact)
	var status struct {
		Status struct {
			ID       string   `json:"id"`
			RepoTags []string `json:"repoTags"`
			Size     string   `json:"size"`
		} `json:"status"`
		Info struct {
			ImageSpec struct {
				OS           string `json:"os"`
				Architecture string `json:"architecture"`
				Author       string `json:"author"`
				Config       struct {
					Entrypoint []string
				} `json:"config"`
			} `json:"imageSpec"`
		} `json:"info"`
	}
	n.must(json.Unmarshal([]byte(n.crictl("inspecti", "-o", "json", images.ProbeArtifact)), &status))
	equal(t, "tag", strings.Join(status.Status.RepoTags, " "), images.ProbeArtifact)
	equal(t, "platform", status.Info.ImageSpec.OS+"/"+status.Info.ImageSpec.Architecture, "wasip1/wasm")
	equal(t, "author", status.Info.ImageSpec.Author, "test/images")
	equal(t, "entrypoint", strings.Join(status.Info.ImageSpec.Config.Entrypoint, " "), "/module.wasm")

	// What the image does not keep is collected with another image: there must
	// be two configs, two manifests and the module.
	for _, other := range []string{images.Busybox, images.Web} {
		n.crictl("rmi", other)
	}
	n.ctr("images", "delete", "--sync", "no-such-image")
	equal(t, "blobs", len(strings.Fields(n.ctr("content", "ls", "-q"))), 5)
	contains(t, "rootfs", rootfs(n, images.ProbeArtifact, "/module.wasm"), "\x00asm")
	contains(t, "again", n.crictl("pull", images.ProbeArtifact), status.Status.ID)

	n.must(b.Kill())
	n.must(b.Start(n.ctx))
	contains(t, "images after a restart", n.crictl("images"), "wasm/probe")
	// The name with the artifact's digest is a name of the image, too.
	name, _, _ := strings.Cut(images.ProbeArtifact, ":")
	name += "@" + b.Registry.Digest(images.ProbeArtifact).String()
	n.crictl("pull", name)
	contains(t, "image by digest", n.crictl("inspecti", name), status.Status.ID, name)
	n.crictl("rmi", images.ProbeArtifact)
	if list := n.ctr("images", "ls", "-q"); strings.Contains(list, "wasm/probe") {
		t.Errorf("after its removal there is %s", list)
	}
}

// TestBrokenArtifact pulls what no image can be made of.
func TestBrokenArtifact(t *testing.T) {
	n := on(t, newBed(t, bed.Options{}), bed.Runc)
	_, err := bed.Output(n.Crictl(n.ctx, "pull", images.ProbeBroken))
	refused(t, err, "2 layers", "application/wasm")
	works(n)
}

// rootfs is the content of a file that a container of an image has.
func rootfs(n *fixture, image, path string) string {
	n.t.Helper()
	client, err := n.Client()
	n.must(err)
	// A view that nobody holds is garbage, which each deletion has collected.
	ctx, done, err := client.WithLease(namespaces.WithNamespace(n.ctx, bed.Namespace))
	n.must(err)
	defer done(ctx)
	i, err := client.GetImage(ctx, image)
	n.must(err)
	diffs, err := i.RootFS(ctx)
	n.must(err)
	view := "view-" + filepath.Base(n.t.Name())
	snapshots := client.SnapshotService("")
	mounts, err := snapshots.View(ctx, view, identity.ChainID(diffs).String())
	n.must(err)
	defer func() { n.must(snapshots.Remove(ctx, view)) }()
	var data []byte
	n.must(mount.WithTempMount(ctx, mounts, func(root string) error {
		data, err = os.ReadFile(filepath.Join(root, path))
		return err
	}))
	return string(data)
}

// TestShippedModules runs modules in all the ways that they are shipped, on
// each engine.
func TestShippedModules(t *testing.T) {
	b := newBed(t, bed.Options{})
	shipped := []string{images.Probe, images.ProbeWasi, images.ProbeArtifact}
	for _, image := range shipped {
		if err := b.Pull(t.Context(), image); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range engine.Names {
		t.Run(name, func(t *testing.T) {
			bed.RequireEngine(t, name)
			n := on(t, b, bed.Wasm)
			p := n.pod(choose(name))
			for _, image := range shipped {
				c := n.run(p, func(c *runtime.ContainerConfig) {
					c.Image.Image, c.Command, c.Args = image, nil, []string{"repeat", "2"}
				})
				equal(t, image, n.exit(c).ExitCode, 0)
				log, err := c.Log("stdout")
				n.must(err)
				equal(t, image, log, "line 0\nline 1\n")
			}
		})
	}
	n := on(t, b, bed.Wasm)
	out := n.ctr("run", "--rm", "--sandbox", n.pod(nil).ID, images.ProbeArtifact, "module-by-ctr", "/module.wasm", "args", "by ctr")
	equal(t, "ctr run", out, "by ctr")
}

// TestComponent runs a program of WASI preview 2, which one engine knows.
func TestComponent(t *testing.T) {
	b := newBed(t, bed.Options{})
	if err := b.Pull(t.Context(), images.Probe); err != nil {
		t.Fatal(err)
	}
	for _, name := range engine.Names {
		t.Run(name, func(t *testing.T) {
			bed.RequireEngine(t, name)
			n := on(t, b, bed.Wasm)
			c, err := n.pod(choose(name)).Run(n.ctx, func(c *runtime.ContainerConfig) {
				c.Image.Image, c.Command = images.Probe, []string{"/component.wasm"}
			})
			if name != engine.Wasmtime {
				refused(t, err, "component", engine.Wasmtime)
				return
			}
			n.must(err)
			equal(t, "exit code", n.exit(c).ExitCode, 0)
			log, err := c.Log("stdout")
			n.must(err)
			equal(t, "log", log, "hello from a component\n")
		})
	}
}
