package sandbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox/sandboxtest"
)

func TestInstance(t *testing.T) {
	f := newFixture(t)
	config := &runtime.PodSandboxConfig{
		Hostname: "h", Labels: map[string]string{"app": "a", "name": "the pod's own"},
		Linux: &runtime.LinuxPodSandboxConfig{CgroupParent: "/kubepods/pod1"},
	}
	create := func(id string) {
		t.Helper()
		f.must(f.Create(f.ctx, core.Sandbox{ID: id, Labels: map[string]string{"name": id + "_name"}, Runtime: core.RuntimeOpts{Name: "io.containerd.kuasar.v1"}},
			core.WithOptions(config), core.WithNetNSPath("/run/netns/x")))
	}
	create("plain")
	i := f.start("plain")
	if i.SandboxID != "plain" || i.Pid != 0 || i.Address != "" || i.Version != 0 || i.CreatedAt.IsZero() {
		t.Errorf("instance %+v", i)
	}
	want := map[string]string{"name": "plain_name", "app": "a", "oci_runtime_type": "io.containerd.kuasar.v1"}
	if !maps.Equal(i.Labels, want) {
		t.Errorf("labels %v, want %v", i.Labels, want)
	}
	s := decode(t, i.Spec)
	if s.Linux.CgroupsPath != "/kubepods/pod1" || s.Hostname != "h" ||
		!slices.Equal(s.Linux.Namespaces, []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/run/netns/x"}}) {
		t.Errorf("spec %+v", s)
	}

	f.memory.Extras = &sandboxtest.Extras{
		PID: 4242, Address: "ttrpc+unix:///x", Version: 3,
		Spec: &specs.Spec{Version: "1.2", Process: &specs.Process{SelinuxLabel: "l"}},
	}
	create("full")
	i = f.start("full")
	if i.Pid != 4242 || i.Address != "ttrpc+unix:///x" || i.Version != 3 || i.Labels["selinux_label"] != "l" {
		t.Errorf("instance %+v", i)
	}
	if s := decode(t, i.Spec); s.Version != "1.2" {
		t.Errorf("spec %+v", s)
	}
	if s := f.status("full"); s.Address != "ttrpc+unix:///x" || s.Version != 3 || s.Pid != 4242 {
		t.Errorf("status %+v", s)
	}
	f.must(f.Shutdown(f.ctx, "plain"))
	f.must(f.Shutdown(f.ctx, "full"))
}

// decode decodes a spec as containerd's clients do.
func decode(t *testing.T, a typeurl.Any) *specs.Spec {
	t.Helper()
	typeurl.Register(&specs.Spec{}, "types.containerd.io", "opencontainers/runtime-spec", "1", "Spec")
	v, err := typeurl.UnmarshalAny(a)
	if err != nil {
		t.Fatal(err)
	}
	return v.(*specs.Spec)
}

func TestFailedStartLeavesNothing(t *testing.T) {
	for name, break_ := range map[string]func(f *fixture){
		"error":                         func(f *fixture) { f.memory.OnStart = fail },
		"panic":                         func(f *fixture) { f.memory.OnStart = func(context.Context) error { panic("injected") } },
		"no room to say that it starts": func(f *fixture) { f.jam("one") },
		"no room to say that it runs": func(f *fixture) {
			f.memory.OnStart = func(context.Context) error { f.jam("one"); return nil }
		},
		"nothing to be saved": func(f *fixture) { f.memory.OnSave = fail },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.must(f.create("one"))
			break_(f)
			if _, err := f.Start(f.ctx, "one"); err == nil || !strings.Contains(err.Error(), "start sandbox one") {
				t.Fatalf("error %v", err)
			}
			f.gone("one")
			if events := f.events.published(); !slices.Equal(events, []string{"test /sandboxes/create one"}) {
				t.Errorf("events %q", events)
			}
		})
	}
}

// What a failed start leaves, since its cleaning up fails too, is not lost
// sight of: it is cleaned up by who wants its name or stops it, or by the next
// daemon.
func TestFailedStartThatCannotBeCleanedUp(t *testing.T) {
	for name, next := range map[string]func(f *fixture){
		"same name": func(f *fixture) {
			f.must(f.Create(f.ctx, core.Sandbox{ID: "two", Labels: map[string]string{"name": "name of one"}}))
			f.must(f.Shutdown(f.ctx, "two"))
		},
		"same id":  func(f *fixture) { f.must(f.create("one")); f.must(f.Shutdown(f.ctx, "one")) },
		"stop":     func(f *fixture) { f.must(f.Stop(f.ctx, "one")) },
		"shutdown": func(f *fixture) { f.must(f.Shutdown(f.ctx, "one")) },
		"restart":  func(f *fixture) { f.restart() },
	} {
		for stage, hook := range map[string]func(m *sandboxtest.Memory){
			"stop":   func(m *sandboxtest.Memory) { m.OnStop = fail },
			"delete": func(m *sandboxtest.Memory) { m.OnDelete = fail },
		} {
			t.Run(stage+" fails, "+name, func(t *testing.T) {
				f := newFixture(t)
				f.must(f.create("one"))
				f.memory.OnStart = func(context.Context) error {
					f.must(os.WriteFile(f.memory.World+"/one", nil, 0o600)) // its effect
					return errHook
				}
				hook(f.memory)
				if _, err := f.Start(f.ctx, "one"); !errors.Is(err, errHook) || !strings.Contains(err.Error(), "is left") {
					t.Fatalf("start: %v", err)
				}
				f.want("one", unknown)
				if err := f.create("one"); !errdefs.IsAlreadyExists(err) || !errors.Is(err, errHook) {
					t.Errorf("while it cannot be removed: %v", err)
				}
				f.memory.OnStart, f.memory.OnStop, f.memory.OnDelete = nil, nil, nil
				next(f)
				f.gone("one")
			})
		}
	}
}

// A start whose caller gave up at its very end leaves nothing either.
func TestStartThatIsTooLate(t *testing.T) {
	f := newFixture(t)
	f.must(f.create("one"))
	ctx, cancel := context.WithCancel(f.ctx)
	f.memory.OnStart = func(context.Context) error {
		return os.WriteFile(f.memory.World+"/one", nil, 0o600)
	}
	f.memory.OnSave = func(context.Context) error { cancel(); return nil }
	if _, err := f.Start(ctx, "one"); !errors.Is(err, context.Canceled) {
		t.Errorf("start: %v", err)
	}
	f.gone("one")
}

// awaited is a context that says when somebody begins to wait with it.
type awaited struct {
	context.Context
	once  sync.Once
	waits chan struct{}
}

func (a *awaited) Done() <-chan struct{} {
	a.once.Do(func() { close(a.waits) })
	return a.Context.Done()
}

// A stop that waits already is not overtaken by a start.
func TestStopBeforeStart(t *testing.T) {
	f := newFixture(t)
	hook, entered, open := hold()
	f.memory.OnCreate = hook
	created := async(func() error { return f.create("one") })
	<-entered
	stop := &awaited{Context: f.ctx, waits: make(chan struct{})}
	stopped := async(func() error { return f.Stop(stop, "one") })
	<-stop.waits
	started := async(func() error { _, err := f.Start(f.ctx, "one"); return err })
	close(open)
	f.must(f.await(created))
	f.must(f.await(stopped))
	if err := f.await(started); err == nil {
		t.Error("a sandbox runs that was stopped")
	}
	f.must(f.Shutdown(f.ctx, "one"))
	f.gone("one")
}

// What a sandbox notes between calls is there after a restart.
func TestSaved(t *testing.T) {
	f := newFixture(t)
	f.run("one")
	box := f.memory.Last()
	f.must(box.Note(f.ctx, "first"))
	f.must(box.Note(f.ctx, "second"))
	f.restart()
	if got := f.memory.Last().Memo(); got != "second" || f.memory.Last() == box {
		t.Errorf("noted %q", got)
	}
	f.memory.OnSave = fail
	if err := f.memory.Last().Note(f.ctx, "third"); !errors.Is(err, errHook) {
		t.Errorf("note: %v", err)
	}
	f.memory.OnSave = nil
	f.must(f.Shutdown(f.ctx, "one"))
	if err := box.Note(f.ctx, "late"); err == nil {
		t.Error("noted in a directory that there is not")
	}
}

func TestRecordsHaveNoSurprises(t *testing.T) {
	f := newFixture(t)
	f.run("one")
	for file, keys := range map[string][]string{
		"sandbox.json": {"labels", "spec"},
		"state.json":   {"backend", "state"},
	} {
		b, err := os.ReadFile(f.file("one", file))
		f.must(err)
		var r struct {
			Version int
			Boot    string
			Data    map[string]json.RawMessage
		}
		f.must(json.Unmarshal(b, &r))
		if got := slices.Sorted(maps.Keys(r.Data)); r.Version != 1 || r.Boot == "" || !slices.Equal(got, keys) {
			t.Errorf("%s has %q: %s", file, got, b)
		}
		if info, err := os.Stat(f.file("one", file)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", file, info.Mode())
		}
	}
	if info, err := os.Stat(f.file("one", "")); err != nil || info.Mode().Perm() != 0o711 {
		t.Errorf("directory has mode %v", info.Mode())
	}
	f.must(f.Shutdown(f.ctx, "one"))
}
