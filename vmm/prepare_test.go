package vmm

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
)

// sharing is a pod that runs, as far as its containers' files can tell.
func sharing(t *testing.T) *pod {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir := t.TempDir()
	life, finish := context.WithCancel(t.Context())
	p := &pod{
		id: "pod", dir: dir, vm: filepath.Join(dir, vmDir), life: life, over: life.Done(), finish: finish,
		config: &runtime.PodSandboxConfig{Hostname: "guest"},
		state:  state{Started: true, Processes: map[string]Process{roleVMM: {Pid: 4242}}},
	}
	if err := p.makeShare(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 2 {
			if err := p.removeShare(); err != nil {
				t.Error(err)
			}
		}
		b, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil || strings.Contains(string(b), dir) {
			t.Errorf("mounts are left: %s, %v", b, err)
		}
	})
	return p
}

// view is what the guest sees at a path below Seen.
func (p *pod) seen(t *testing.T, path string) string {
	t.Helper()
	rest, ok := strings.CutPrefix(path, Seen)
	if !ok {
		t.Fatalf("%s is not in the share", path)
	}
	return filepath.Join(p.dir, viewDir, rest)
}

func container(t *testing.T, id string) *sandbox.Container {
	return &sandbox.Container{
		ID: id,
		Spec: &specs.Spec{
			Version: specs.Version, Root: &specs.Root{Path: "rootfs"},
			Process: &specs.Process{Args: []string{"/true"}, Cwd: "/", ApparmorProfile: "p"},
			Linux:   &specs.Linux{},
		},
		Rootfs: []mount.Mount{{Type: "bind", Source: t.TempDir(), Options: []string{"rbind"}}},
	}
}

func write(t *testing.T, path string) error {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// The guest writes to what is mounted for its containers and to nothing else.
func TestShare(t *testing.T) {
	p := sharing(t)
	c := container(t, "one")
	data, kept := t.TempDir(), t.TempDir()
	file := filepath.Join(data, "file")
	if err := os.WriteFile(file, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Spec.Mounts = []specs.Mount{
		{Destination: "/data", Type: "bind", Source: data, Options: []string{"rbind", "rw"}},
		{Destination: "/kept", Type: "bind", Source: kept, Options: []string{"rbind", "ro"}},
		{Destination: "/file", Source: file, Options: []string{"bind"}},
		{Destination: "/proc", Type: "proc", Source: "proc"},
		{Destination: "/all", Type: "bind", Source: kept, Options: []string{"rbind", "rro"}},
	}
	below := filepath.Join(kept, "below")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("below", below, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(below, 0); err != nil {
			t.Error(err)
		}
	})
	bundle, err := p.Prepare(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	at := func(i int) string { return p.seen(t, c.Spec.Mounts[i].Source) }
	for path, want := range map[string]error{
		filepath.Join(at(0), "new"):                       nil,
		filepath.Join(at(1), "new"):                       unix.EROFS,
		filepath.Join(at(1), "below/new"):                 nil,
		filepath.Join(at(4), "below/new"):                 unix.EROFS,
		at(2):                                             nil,
		filepath.Join(p.seen(t, c.Spec.Root.Path), "new"): nil,
		filepath.Join(p.seen(t, bundle.Path), "new"):      unix.EROFS,
		p.seen(t, Seen+"/new"):                            unix.EROFS,
		p.seen(t, Seen+"/pod/hosts"):                      nil,
	} {
		if err := write(t, path); !errors.Is(err, want) {
			t.Errorf("write %s: %v, want %v", path, err, want)
		}
	}
	if slices.Contains(c.Spec.Mounts[1].Options, "ro") {
		t.Error("the guest would not let write to what is mounted below a volume")
	}
	if b, err := os.ReadFile(at(2)); err != nil || string(b) != "text" {
		t.Errorf("file: %q, %v", b, err)
	}
	// A volume that is changed on the host is seen.
	if err := os.WriteFile(filepath.Join(kept, "later"), []byte("now"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(at(1), "later")); err != nil || string(b) != "now" {
		t.Errorf("later: %q, %v", b, err)
	}
	var written specs.Spec
	b, err := os.ReadFile(filepath.Join(p.seen(t, bundle.Path), "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &written); err != nil || written.Root.Path != c.Spec.Root.Path {
		t.Errorf("config.json: %v, %v", written.Root, err)
	}
	if _, err := os.Stat(bundle.Rootfs); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := p.Release(t.Context(), "one"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(data, "new")); err != nil {
		t.Errorf("a volume's content went with the container: %v", err)
	}
	if _, err := p.Prepare(t.Context(), container(t, "one")); err != nil {
		t.Errorf("its id again: %v", err)
	}
}

// What is mounted below a volume's source later is seen where that is asked for.
func TestPropagation(t *testing.T) {
	p := sharing(t)
	source := t.TempDir()
	for _, f := range []func() error{
		func() error { return unix.Mount("test", source, "tmpfs", 0, "") },
		func() error { return unix.Mount("", source, "", unix.MS_SHARED, "") },
		func() error { return os.Mkdir(filepath.Join(source, "later"), 0o700) },
	} {
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		if err := unix.Unmount(source, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	c := container(t, "one")
	c.Spec.Mounts = []specs.Mount{
		{Destination: "/default", Type: "bind", Source: source, Options: []string{"rbind"}},
		{Destination: "/private", Type: "bind", Source: source, Options: []string{"rbind", "rprivate"}},
		{Destination: "/slave", Type: "bind", Source: source, Options: []string{"rbind", "rslave"}},
	}
	if _, err := p.Prepare(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	later := filepath.Join(source, "later")
	if err := unix.Mount("test", later, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := write(t, filepath.Join(later, "file")); err != nil {
		t.Fatal(err)
	}
	for _, m := range c.Spec.Mounts[:3] {
		_, err := os.Stat(filepath.Join(p.seen(t, m.Source), "later/file"))
		if got, want := err == nil, m.Destination == "/slave"; got != want {
			t.Errorf("%s: seen: %t", m.Destination, got)
		}
	}
}

// A container that cannot be made leaves nothing.
func TestPrepareFails(t *testing.T) {
	p := sharing(t)
	for name, test := range map[string]struct {
		change func(*sandbox.Container)
		class  func(error) bool
	}{
		"no spec":        {func(c *sandbox.Container) { c.Spec = nil }, errdefs.IsInvalidArgument},
		"no process":     {func(c *sandbox.Container) { c.Spec.Process = nil }, errdefs.IsInvalidArgument},
		"other terminal": {func(c *sandbox.Container) { c.IO.Terminal = true }, errdefs.IsInvalidArgument},
		"no rootfs":      {func(c *sandbox.Container) { c.Rootfs = nil }, errdefs.IsInvalidArgument},
		"bad id":         {func(c *sandbox.Container) { c.ID = "../x" }, errdefs.IsInvalidArgument},
		"volume vanished": {func(c *sandbox.Container) {
			c.Spec.Mounts = []specs.Mount{{Destination: "/x", Type: "bind", Source: "/no/such"}}
		}, errdefs.IsFailedPrecondition},
		"device of the host": {func(c *sandbox.Container) {
			c.Spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/sda", Type: "c", Major: 8}}
		}, errdefs.IsNotImplemented},
		"block device that is gone": {func(c *sandbox.Container) {
			c.Spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/sda", Type: "b", Major: 4095, Minor: 4095}}
		}, errdefs.IsFailedPrecondition},
		"hooks": {func(c *sandbox.Container) { c.Spec.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/x"}}} }, errdefs.IsNotImplemented},
	} {
		c := container(t, "one")
		test.change(c)
		if _, err := p.Prepare(t.Context(), c); !test.class(err) {
			t.Errorf("%s: %v", name, err)
		}
		if left, _ := os.ReadDir(filepath.Join(p.dir, shareDir, "containers")); len(left) > 0 {
			t.Errorf("%s: %v is left", name, left)
		}
	}
	p.finish()
	if _, err := p.Prepare(t.Context(), container(t, "one")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("in a pod that is over: %v", err)
	}
}

// The guest is the pod: a container has of its own what is not the pod's.
func TestTranslate(t *testing.T) {
	p := &pod{state: state{Processes: map[string]Process{roleVMM: {Pid: 4242}}}}
	c := container(t, "one")
	c.Spec.Annotations = map[string]string{"io.kubernetes.cri.sandbox-id": "pod"}
	c.Spec.Linux = &specs.Linux{
		Namespaces: []specs.LinuxNamespace{
			{Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}, {Type: specs.PIDNamespace},
			{Type: specs.NetworkNamespace, Path: "/run/netns/pod"},
			{Type: specs.IPCNamespace, Path: "/proc/4242/ns/ipc"}, {Type: specs.UTSNamespace, Path: "/proc/4242/ns/uts"},
		},
		CgroupsPath: "/kubepods/pod/one",
		Resources:   &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0-3", Mems: "0"}, HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB"}}},
	}
	c.Spec.Mounts = []specs.Mount{{Destination: "/dev/shm", Type: "tmpfs", Source: "shm"}}
	if volumes := p.translate(c); len(volumes) != 0 {
		t.Errorf("volumes %v", volumes)
	}
	var kept []specs.LinuxNamespaceType
	for _, ns := range c.Spec.Linux.Namespaces {
		kept = append(kept, ns.Type)
	}
	if want := []specs.LinuxNamespaceType{specs.MountNamespace, specs.CgroupNamespace, specs.PIDNamespace}; !slices.Equal(kept, want) {
		t.Errorf("namespaces %v", kept)
	}
	sources := map[string]string{}
	for _, m := range c.Spec.Mounts {
		sources[m.Destination] = m.Source
	}
	for at, want := range map[string]string{
		"/dev/shm": "/dev/shm", "/etc/hosts": Seen + "/pod/hosts", "/etc/hostname": Seen + "/pod/hostname", "/etc/resolv.conf": Seen + "/pod/resolv.conf",
	} {
		if sources[at] != want {
			t.Errorf("%s comes from %q, want %q", at, sources[at], want)
		}
	}
	if l := c.Spec.Linux; l.CgroupsPath != "/kuasar/one" || l.Resources.CPU.Cpus != "" || len(l.Resources.HugepageLimits) > 0 || c.Spec.Process.ApparmorProfile != "" {
		t.Errorf("it has of the host: %+v, %+v", l, c.Spec.Process)
	}
	// A pod whose containers share their process ids.
	c = container(t, "two")
	c.Spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.PIDNamespace, Path: "/proc/4242/ns/pid"}}
	p.translate(c)
	if l := c.Spec.Linux.Namespaces; len(l) != 1 || l[0].Type != specs.CgroupNamespace {
		t.Errorf("namespaces %v", l)
	}
	// A privileged one.
	c = container(t, "three")
	c.Spec.Linux.Namespaces = nil
	c.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_SYS_ADMIN"}}
	p.translate(c)
	if l := c.Spec.Linux.Namespaces; len(l) != 0 {
		t.Errorf("namespaces of a privileged container %v", l)
	}
}
