package sandbox_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/core/mount"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/sandboxtest"
)

func TestConformance(t *testing.T) {
	world := t.TempDir()
	sandboxtest.Run(t, sandboxtest.Suite{
		Backend:   func(*testing.T) sandbox.Backend { return &sandboxtest.Memory{World: world} },
		Container: func(_ *testing.T, id string) *sandbox.Container { return &sandbox.Container{ID: id} },
		Leaks: func(t *testing.T) {
			if left, err := os.ReadDir(world); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		},
	})
}

func options(t *testing.T, v any) typeurl.Any {
	t.Helper()
	o, err := typeurl.MarshalAny(v)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestBadCreate(t *testing.T) {
	f := newFixture(t)
	good := core.WithOptions(&runtime.PodSandboxConfig{})
	for name, test := range map[string]struct {
		ctx  context.Context
		info core.Sandbox
		opt  core.CreateOpt
		is   func(error) bool
		says string
	}{
		"no id":            {info: core.Sandbox{}, is: errdefs.IsInvalidArgument, says: "identifier"},
		"path for an id":   {info: core.Sandbox{ID: "../x"}, is: errdefs.IsInvalidArgument, says: "../x"},
		"no namespace":     {ctx: context.Background(), info: core.Sandbox{ID: "x"}, is: errdefs.IsFailedPrecondition, says: "namespace"},
		"options of runc":  {info: core.Sandbox{ID: "x", Runtime: core.RuntimeOpts{Options: options(t, &runcoptions.Options{BinaryName: "b"})}}, is: errdefs.IsInvalidArgument, says: "io.containerd.kuasar.v1"},
		"no such file":     {info: core.Sandbox{ID: "x", Runtime: core.RuntimeOpts{Options: options(t, &runtimeoptions.Options{ConfigPath: "/no/such"})}}, is: errdefs.IsInvalidArgument, says: "/no/such"},
		"unknown options":  {info: core.Sandbox{ID: "x", Runtime: core.RuntimeOpts{Options: options(t, &runtimeoptions.Options{ConfigBody: []byte("a=1")})}}, is: errdefs.IsInvalidArgument, says: "a=1"},
		"another's config": {info: core.Sandbox{ID: "x"}, opt: core.WithOptions(&runtime.ContainerConfig{}), is: errdefs.IsInvalidArgument, says: "PodSandboxConfig"},
		"not a config":     {info: core.Sandbox{ID: "x"}, opt: core.WithOptions(&anypb.Any{TypeUrl: "runtime.v1.PodSandboxConfig", Value: []byte{0xff}}), is: errdefs.IsInvalidArgument, says: "PodSandboxConfig"},
		"a root":           {info: core.Sandbox{ID: "x"}, opt: core.WithRootFS([]mount.Mount{{Type: "bind"}}), is: errdefs.IsNotImplemented, says: "root file system"},
		"bad option":       {info: core.Sandbox{ID: "x"}, opt: func(*core.CreateOptions) error { return errHook }, is: errdefs.IsInvalidArgument, says: "injected"},
	} {
		t.Run(name, func(t *testing.T) {
			if test.ctx == nil {
				test.ctx = f.ctx
			}
			if test.opt == nil {
				test.opt = good
			}
			err := f.Create(test.ctx, test.info, test.opt)
			if !test.is(err) || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), "create sandbox "+test.info.ID) {
				t.Errorf("error %v", err)
			}
			if left, _ := os.ReadDir(f.dir); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	if events := f.events.published(); len(events) > 0 {
		t.Errorf("events %q", events)
	}
}

// A backend gets what the client gave, and after a restart the same.
func TestSpec(t *testing.T) {
	f := newFixture(t)
	toml := filepath.Join(t.TempDir(), "options")
	f.must(os.WriteFile(toml, nil, 0o600))
	f.must(f.Create(f.ctx, core.Sandbox{
		ID: "one", Labels: map[string]string{"name": "n_default"},
		Runtime: core.RuntimeOpts{Name: sandbox.RuntimeType, Options: options(t, &runtimeoptions.Options{ConfigPath: toml})},
	},
		core.WithOptions(&runtime.PodSandboxConfig{Hostname: "h", Annotations: map[string]string{"a": "1"}}),
		core.WithAnnotations(map[string]string{"b": "2"}),
		core.WithNetNSPath("/run/netns/x")))
	f.start("one")
	check := func() {
		t.Helper()
		s := f.memory.Last().Spec()
		if s.ID != "one" || s.Namespace != "test" || s.Name != "n_default" || s.NetNS != "/run/netns/x" || s.Dir != filepath.Join(f.dir, "one") ||
			s.Config.Hostname != "h" || s.Config.Annotations["a"] != "1" || s.Config.Annotations["b"] != "2" || s.CreatedAt.IsZero() || s.Saved == nil {
			t.Errorf("spec %+v", s)
		}
	}
	check()
	f.restart()
	check()
	f.must(f.Shutdown(f.ctx, "one"))
}

// Clients other than CRI need give nothing but an id.
func TestBareCreate(t *testing.T) {
	f := newFixture(t)
	var none *anypb.Any
	f.must(f.Create(f.ctx, core.Sandbox{ID: "one"}, core.WithOptions(none)))
	f.must(f.Create(f.ctx, core.Sandbox{ID: "two"})) // no name is no conflict
	f.start("one")
	f.must(f.Shutdown(f.ctx, "one"))
	f.must(f.Shutdown(f.ctx, "two"))
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	for name, hook := range map[string]func(context.Context) error{
		"error": fail,
		"panic": func(context.Context) error { panic("injected") },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.memory.OnCreate = hook
			if err := f.create("one"); err == nil || !strings.Contains(err.Error(), "injected") {
				t.Fatalf("error %v", err)
			}
			f.gone("one")
			f.memory.OnCreate = nil
			f.run("one")
			f.must(f.Shutdown(f.ctx, "one"))
		})
	}
}

// Every call that comes while Create runs waits for it or answers.
func TestCallsDuringCreate(t *testing.T) {
	f := newFixture(t)
	hook, entered, open := hold()
	f.memory.OnCreate = hook
	created := async(func() error { return f.create("one") })
	<-entered
	f.want("one", notReady)
	live, err := f.Get("one")
	f.must(err)
	if _, err := live.Agent(f.ctx); !errdefs.IsUnavailable(err) || live.Running() {
		t.Errorf("agent: %v, running %t", err, live.Running())
	}
	if err := live.Release(f.ctx, "x"); !errdefs.IsUnavailable(err) {
		t.Errorf("release: %v", err)
	}
	if _, err := f.Metrics(f.ctx, "one"); !errdefs.IsUnavailable(err) {
		t.Errorf("metrics: %v", err)
	}
	started := async(func() error { _, err := f.Start(f.ctx, "one"); return err })
	close(open)
	f.must(f.await(created))
	f.must(f.await(started))
	f.must(f.Shutdown(f.ctx, "one"))
}

// A backend that returns neither a sandbox nor an error is wrong, and no
// reason to crash.
func TestNoSandbox(t *testing.T) {
	dir := t.TempDir()
	f := newFixture(t)
	c, err := sandbox.New(f.ctx, sandbox.Config{Name: "nothing", Dir: dir, Backend: nothing{}})
	f.must(err)
	defer c.Close()
	if err := c.Create(f.ctx, core.Sandbox{ID: "one"}); !errdefs.IsInternal(err) {
		t.Errorf("create: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

type nothing struct{ sandbox.Backend }

func (nothing) Create(context.Context, sandbox.Spec) (sandbox.Sandbox, error) { return nil, nil }

// What cannot be recorded is not made.
func TestCreateOnFullDisk(t *testing.T) {
	f := newFixture(t)
	f.must(os.Chmod(f.dir, 0o700))
	f.must(os.WriteFile(filepath.Join(f.dir, "one"), nil, 0o600)) // in the directory's place
	if err := f.create("one"); !errors.Is(err, os.ErrExist) {
		t.Errorf("create: %v", err)
	}
}

func TestSocketPath(t *testing.T) {
	short := sandbox.Spec{Dir: "/run/containerd/kuasar/vmm/0123"}
	if path, err := short.Socket("qmp"); err != nil || path != short.Dir+"/qmp" {
		t.Errorf("path %s, error %v", path, err)
	}
	for length, fits := range map[int]bool{107: true, 108: false, 200: false} {
		s := sandbox.Spec{Dir: "/" + strings.Repeat("d", length-len("/")-len("/qmp"))}
		path, err := s.Socket("qmp")
		if fits != (err == nil) || fits && len(path) != length {
			t.Errorf("%d bytes: %v", length, err)
		}
		if !fits && (!errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), s.Dir+"/qmp") || !strings.Contains(err.Error(), "108") || !strings.Contains(err.Error(), "`state`")) {
			t.Errorf("%d bytes: %v", length, err)
		}
	}
}
