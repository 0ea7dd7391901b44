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

	"github.com/containerd/containerd/v2/core/mount"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/vmm"
	"github.com/containerd-kuasar/containerd-kuasar/vmm/vmmtest"
)

// doomedDaemon is the first argument of the process that is to die, and its
// directory the second.
const doomedDaemon = "vmm-test-daemon"

// daemon is one with the sandboxer vmm.
type daemon struct {
	*sandbox.Controller
	ctx    context.Context
	reaper *pidfd.Reaper
}

func newDaemon(ctx context.Context, dir string) (*daemon, error) {
	r, err := pidfd.NewReaper()
	if err != nil {
		return nil, err
	}
	o := vmm.Defaults()
	o.Hypervisor, o.Accel, o.Kernel, o.Initrd = "test", vmm.TCG, "/dev/null", "/dev/null"
	o.MaxMemory = 2 << 30
	b := &vmm.Backend{Drivers: map[string]vmm.Driver{"test": vmmtest.Fake{}}, Defaults: o, Reaper: r}
	ctx = namespaces.WithNamespace(ctx, "test")
	c, err := sandbox.New(ctx, sandbox.Config{Name: "vmm", Dir: filepath.Join(dir, "boxes"), Backend: b})
	return &daemon{c, ctx, r}, err
}

func (d *daemon) close() {
	_ = d.Controller.Close()
	_ = d.reaper.Close()
}

func (d *daemon) run(id string) error {
	config := &runtime.PodSandboxConfig{Linux: &runtime.LinuxPodSandboxConfig{CgroupParent: vmmtest.Group}}
	err := d.Create(d.ctx, core.Sandbox{ID: id, Labels: map[string]string{"name": id}}, core.WithOptions(config))
	if err == nil {
		_, err = d.Start(d.ctx, id)
	}
	return err
}

func (d *daemon) remove(id string) error {
	if err := d.Stop(d.ctx, id); err != nil {
		return err
	}
	return d.Shutdown(d.ctx, id)
}

// live is all that has outside effects.
func (d *daemon) live() error {
	if err := d.run("one"); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	box, err := d.Get("one")
	if err != nil {
		return err
	}
	spec := func() *specs.Spec {
		return &specs.Spec{
			Version: specs.Version, Root: &specs.Root{Path: "/usr"}, Process: &specs.Process{Args: []string{"/true"}, Cwd: "/"},
			Mounts: []specs.Mount{{Destination: "/etc", Type: "bind", Source: "/etc", Options: []string{"ro"}}},
		}
	}
	if _, err := box.Prepare(d.ctx, &sandbox.Container{ID: "c", Spec: spec()}); err != nil {
		return err
	}
	// Nobody looks into the file: it is for the guest to mount.
	disk := []mount.Mount{{Type: "ext4", Source: os.Args[0], Options: []string{"loop"}}}
	if _, err := box.Prepare(d.ctx, &sandbox.Container{ID: "disk", Spec: spec(), Rootfs: disk}); err != nil {
		return err
	}
	if err := box.Release(d.ctx, "disk"); err != nil {
		return err
	}
	bigger := &anypb.Any{Value: []byte(`{"Resources":{"memory_limit_in_bytes":1073741824}}`)}
	if err := d.Update(d.ctx, "one", core.Sandbox{Extensions: map[string]typeurl.Any{"updated-resources": bigger}}, "extensions"); err != nil {
		return err
	}
	return d.remove("one")
}

// doom lives until a failpoint.
func doom(dir string) int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	d, err := newDaemon(ctx, dir)
	if err == nil {
		err = d.live()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// TestKilledAtFailpoint kills the daemon at each point. The next one finds the
// other pod as it was, and of this one what it can remove: nothing is left.
func TestKilledAtFailpoint(t *testing.T) {
	root(t)
	points := slices.DeleteFunc(failpoint.Names(), func(name string) bool {
		ours := strings.HasPrefix(name, "vmm/") || strings.HasPrefix(name, "host/bundle/")
		// See TestKilledWithTemplate, TestKilledWithPool, and
		// TestVMKilledWithInterface of test/restart.
		return !ours || strings.HasPrefix(name, "vmm/template/") || strings.HasPrefix(name, "vmm/pool/") || strings.HasPrefix(name, "vmm/nic/")
	})
	if len(points) < 10 {
		t.Fatalf("points %q", points)
	}
	for _, point := range points {
		t.Run(point, func(t *testing.T) { killedAt(t, point) })
	}
}

func killedAt(t *testing.T, point string) {
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
	d, err := newDaemon(ctx, dir)
	must(err)
	must(d.run("bystander"))
	before, err := d.Status(d.ctx, "bystander", false)
	must(err)
	d.close()

	cmd := exec.CommandContext(ctx, os.Args[0], doomedDaemon, dir)
	cmd.Env = append(os.Environ(), failpoint.Env+"="+point)
	out, _ := cmd.CombinedOutput()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() {
		t.Errorf("nothing died at %s: is it on no path? %s", point, out)
	}

	d, err = newDaemon(ctx, dir)
	must(err)
	defer d.close()
	after, err := d.Status(d.ctx, "bystander", false)
	must(err)
	if after.State != "SANDBOX_READY" || after.Pid != before.Pid {
		t.Errorf("the other pod was %+v and is %+v", before, after)
	}
	if box, err := d.Get("bystander"); err != nil {
		t.Error(err)
	} else if _, err := box.Agent(d.ctx); err != nil {
		t.Error(err)
	}
	must(d.remove("one"))
	must(d.live()) // nothing of it is in the way
	must(d.remove("bystander"))
	vmmtest.Leaks(t)
	must(os.Remove(filepath.Join(dir, "boxes")))
	must(os.RemoveAll(dir))
}
