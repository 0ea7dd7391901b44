package vmm_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/vmm"
	"github.com/containerd-kuasar/containerd-kuasar/vmm/vmmtest"
)

// doomedTemplate is doomedDaemon for a daemon that has templates.
const doomedTemplate = "vmm-test-template"

// cloning is a daemon whose pods are cloned, or would be.
type cloning struct {
	daemon
	templates *vmm.Templates
}

func newCloning(ctx context.Context, dir string, d vmmtest.Fake, change ...func(*vmm.Options)) (*cloning, error) {
	r, err := pidfd.NewReaper()
	if err != nil {
		return nil, err
	}
	t, err := vmm.OpenTemplates(ctx, filepath.Join(dir, "templates"), r)
	if err != nil {
		return nil, err
	}
	file, err := filepath.Abs("template_test.go") // any
	if err != nil {
		return nil, err
	}
	o := vmm.Defaults()
	o.Templates = true
	o.Hypervisor, o.Accel, o.Kernel, o.Initrd = "test", vmm.TCG, file, file
	for _, f := range change {
		f(&o)
	}
	b := &vmm.Backend{Drivers: map[string]vmm.Driver{"test": d}, Defaults: o, Reaper: r, Templates: t}
	ctx = namespaces.WithNamespace(ctx, "test")
	c, err := sandbox.New(ctx, sandbox.Config{Name: "vmm", Dir: filepath.Join(dir, "boxes"), Backend: b})
	return &cloning{daemon{c, ctx, r}, t}, err
}

// live makes a template and clones it.
func (c *cloning) live() error {
	for range 2 {
		if err := c.run("one"); err != nil && !errdefs.IsAlreadyExists(err) {
			return err
		}
		if err := c.templates.Settled(c.ctx); err != nil {
			return err
		}
		if err := c.remove("one"); err != nil {
			return err
		}
	}
	return nil
}

// doomTemplate lives until a failpoint. Its clones fail, so that there is also
// what is done then.
func doomTemplate(dir string) int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := newCloning(ctx, dir, vmmtest.Fake{Sterile: true})
	if err == nil {
		err = c.live()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// TestKilledWithTemplate kills the daemon while it makes a template, removes
// one, and gives up on a clone. The next daemon leaves nothing of that, but
// templates that are whole.
func TestKilledWithTemplate(t *testing.T) {
	root(t)
	points := slices.DeleteFunc(failpoint.Names(), func(name string) bool { return !strings.HasPrefix(name, "vmm/template/") })
	if len(points) < 8 {
		t.Fatalf("points %q", points)
	}
	for _, point := range points {
		t.Run(point, func(t *testing.T) { templateKilledAt(t, point) })
	}
}

func templateKilledAt(t *testing.T, point string) {
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(ctx, os.Args[0], doomedTemplate, dir)
	cmd.Env = append(os.Environ(), failpoint.Env+"="+point)
	out, _ := cmd.CombinedOutput()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() {
		t.Errorf("nothing died at %s: is it on no path? %s", point, out)
	}
	machines := machines(t, filepath.Join(dir, "templates"))

	c, err := newCloning(ctx, dir, vmmtest.Fake{})
	must(err)
	defer c.close()
	for _, p := range machines {
		f, err := pidfd.Open(p.Pid, p.Start)
		if errdefs.IsNotFound(err) {
			continue
		}
		must(err)
		if running, err := pidfd.Running(f); running || err != nil {
			t.Errorf("the template's machine %d is left: %v", p.Pid, err)
		}
		f.Close()
	}
	entries, err := os.ReadDir(filepath.Join(dir, "templates"))
	must(err)
	if len(entries) != len(c.templates.Keys()) {
		t.Errorf("there are %v and templates %q", entries, c.templates.Keys())
	}
	if _, err := c.Status(c.ctx, "one", false); err == nil {
		must(c.remove("one"))
	}
	must(c.live())
	if n := len(c.templates.Keys()); n != 1 {
		t.Errorf("%d templates", n)
	}
	vmmtest.Leaks(t)
	must(os.RemoveAll(dir))
}

// machines are those that were recorded in a directory of templates.
func machines(t *testing.T, dir string) []vmm.Process {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*", "process.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all []vmm.Process
	for _, f := range files {
		var p vmm.Process
		if _, err := record.Read(f, &p); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

// A daemon that ends in order does not leave the machine of a template to the
// next one.
func TestCloseWithTemplate(t *testing.T) {
	root(t)
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	c, err := newCloning(t.Context(), dir, vmmtest.Fake{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.run("one"); err != nil {
		t.Fatal(err)
	}
	if err := c.remove("one"); err != nil {
		t.Fatal(err)
	}
	c.close()
	entries, err := os.ReadDir(filepath.Join(dir, "templates"))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != len(c.templates.Keys()) {
		t.Errorf("there are %v", entries)
	}
	vmmtest.Leaks(t)
}

// What could not be removed of a template in the making does not keep it from
// being made.
func TestTemplateInTheWay(t *testing.T) {
	root(t)
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	c, err := newCloning(t.Context(), dir, vmmtest.Fake{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.live(); err != nil {
		t.Fatal(err)
	}
	keys := c.templates.Keys()
	c.close()
	if err := os.RemoveAll(filepath.Join(dir, "templates", keys[0])); err != nil {
		t.Fatal(err)
	}
	c, err = newCloning(t.Context(), dir, vmmtest.Fake{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if err := os.MkdirAll(filepath.Join(dir, "templates", "new-"+keys[0], "saved"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := c.live(); err != nil {
		t.Fatal(err)
	}
	if got := c.templates.Keys(); len(got) != 1 || got[0] != keys[0] {
		t.Errorf("templates %q, want %q", got, keys)
	}
	vmmtest.Leaks(t)
}

// A template that cannot be made fails no pod, and is not tried with each.
func TestBarren(t *testing.T) {
	root(t)
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	c, err := newCloning(t.Context(), dir, vmmtest.Fake{Barren: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if err := c.live(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, "templates"))
	if err != nil || len(entries) > 0 {
		t.Errorf("there are %v, %v", entries, err)
	}
	vmmtest.Leaks(t)
}
