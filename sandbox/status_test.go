package sandbox_test

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/netns"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/containerd/typeurl/v2"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox/sandboxtest"
	"github.com/containerd-kuasar/containerd-kuasar/task"
)

// criInfo is what the CRI plugin decodes a verbose status into, and encodes
// again for its client (podsandbox/types.SandboxInfo, which nobody else may
// import). An error here is one of every `crictl inspectp`.
type criInfo struct {
	Pid            uint32                    `json:"pid"`
	Status         string                    `json:"processStatus"`
	NetNSClosed    bool                      `json:"netNamespaceClosed"`
	RuntimeType    string                    `json:"runtimeType"`
	RuntimeOptions any                       `json:"runtimeOptions"`
	Config         *runtime.PodSandboxConfig `json:"config"`
	RuntimeSpec    *specs.Spec               `json:"runtimeSpec"`
	CNIResult      map[string]any            `json:"cniResult"`
	Metadata       *struct {
		Version  string
		Metadata struct{ RuntimeHandler, NetNSPath string }
	} `json:"sandboxMetadata"`
	Overhead  *runtime.ContainerResources `json:"overhead,omitempty"`
	Resources *runtime.ContainerResources `json:"resources,omitempty"`
}

func info(t *testing.T, s core.ControllerStatus) criInfo {
	t.Helper()
	var i criInfo
	if err := json.Unmarshal([]byte(s.Info["info"]), &i); err != nil {
		t.Fatalf("%v: %s", err, s.Info["info"])
	}
	return i
}

// metadata is what the CRI plugin stores with a sandbox.
var metadata = &anypb.Any{
	TypeUrl: "github.com/containerd/cri/pkg/store/sandbox/Metadata",
	Value:   []byte(`{"Version":"v1","Metadata":{"ID":"one","RuntimeHandler":"kuasar","NetNSPath":"/run/netns/x","CNIResult":{"Interfaces":{"eth0":{}}}}}`),
}

func TestVerboseStatus(t *testing.T) {
	f := newFixture(t)
	f.memory.Extras = &sandboxtest.Extras{PID: 4242, Spec: &specs.Spec{Version: "1.2"}}
	f.must(f.Create(f.ctx, core.Sandbox{
		ID: "one", Runtime: core.RuntimeOpts{Name: "io.containerd.kuasar.v1"},
		Extensions: map[string]typeurl.Any{"metadata": metadata, "other": nil},
	}, core.WithOptions(&runtime.PodSandboxConfig{Hostname: "h", Annotations: map[string]string{"a": "1"}})))
	f.start("one")
	for _, life := range []string{"first", "second"} {
		s := f.status("one")
		i := info(t, s)
		if i.Pid != 4242 || i.Status != "running" || i.NetNSClosed || i.RuntimeType != "io.containerd.kuasar.v1" ||
			i.Config.Hostname != "h" || i.Config.Annotations["a"] != "1" || i.RuntimeSpec.Version != "1.2" ||
			i.CNIResult["Interfaces"] == nil || i.Metadata.Metadata.RuntimeHandler != "kuasar" {
			t.Errorf("in the daemon's %s life: %s", life, s.Info["info"])
		}
		if s.State != ready || s.Pid != 4242 || s.CreatedAt.IsZero() || !s.ExitedAt.IsZero() || len(s.Info) != 1 {
			t.Errorf("in the daemon's %s life: %+v", life, s)
		}
		f.restart()
	}
	short, err := f.Status(f.ctx, "one", false)
	f.must(err)
	if short.Info != nil || short.State != ready {
		t.Errorf("status %+v", short)
	}
	f.must(f.Stop(f.ctx, "one"))
	if s := f.status("one"); s.Pid != 0 || s.State != notReady || s.ExitedAt.IsZero() || info(t, s).Status != "stopped" {
		t.Errorf("stopped: %+v", s)
	}
	f.must(f.Shutdown(f.ctx, "one"))
}

// What CRI's client stored may be anything.
func TestStatusWithOddMetadata(t *testing.T) {
	for name, value := range map[string]string{"none": "", "no JSON": "\xff", "a list": "[1]", "null": "null", "no result": `{"Metadata":{}}`} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.must(f.Create(f.ctx, core.Sandbox{ID: "one", Extensions: map[string]typeurl.Any{"metadata": &anypb.Any{Value: []byte(value)}}}))
			if s := f.status("one"); !json.Valid([]byte(s.Info["info"])) {
				t.Errorf("info %s", s.Info["info"])
			}
			f.must(f.Shutdown(f.ctx, "one"))
		})
	}
}

func TestClosedNetworkNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	f := newFixture(t)
	ns, err := netns.NewNetNS(t.TempDir())
	f.must(err)
	f.must(f.Create(f.ctx, core.Sandbox{ID: "one"}, core.WithNetNSPath(ns.GetPath())))
	if info(t, f.status("one")).NetNSClosed {
		t.Error("it is open")
	}
	f.must(ns.Remove())
	if !info(t, f.status("one")).NetNSClosed {
		t.Error("it is closed")
	}
	f.must(f.Shutdown(f.ctx, "one"))
}

func TestStatusAnswersWhileStartRuns(t *testing.T) {
	f := newFixture(t)
	hook, entered, _ := hold()
	f.memory.OnStart = hook
	f.must(f.create("one"))
	started := async(func() error { _, err := f.Start(f.ctx, "one"); return err })
	<-entered
	if s := f.status("one"); s.State != notReady || info(t, s).Status != "starting" {
		t.Errorf("status %+v", s)
	}
	f.must(f.Stop(f.ctx, "one"))
	if err := f.await(started); err == nil || !strings.Contains(err.Error(), "stopped while it started") {
		t.Errorf("start: %v", err)
	}
	f.gone("one")
}

func TestPlatform(t *testing.T) {
	f := newFixture(t)
	f.run("plain")
	p, err := f.Platform(f.ctx, "plain")
	f.must(err)
	if p.OS != platforms.DefaultSpec().OS || p.Architecture != platforms.DefaultSpec().Architecture {
		t.Errorf("platform %+v", p)
	}
	f.memory.Extras = &sandboxtest.Extras{System: imagespec.Platform{OS: "wasi", Architecture: "wasm"}}
	f.run("wasm")
	if p, err = f.Platform(f.ctx, "wasm"); err != nil || p.OS != "wasi" || p.Architecture != "wasm" {
		t.Errorf("platform %+v, %v", p, err)
	}
	f.memory.Extras = &sandboxtest.Extras{}
	f.run("nowhere")
	if _, err := f.Platform(f.ctx, "nowhere"); !errdefs.IsInternal(err) {
		t.Errorf("no platform: %v", err)
	}
	for _, id := range []string{"plain", "wasm", "nowhere"} {
		f.must(f.Shutdown(f.ctx, id))
	}
}

// A backend that panics in what cannot fail costs an answer and no more.
func TestPanicsInAnswers(t *testing.T) {
	f := newFixture(t)
	extras := &sandboxtest.Extras{Panic: true}
	f.memory.Extras = extras
	f.must(f.create("one"))
	if i := f.start("one"); i.Pid != 0 || i.Address != "" || decode(t, i.Spec).Linux == nil {
		t.Errorf("instance %+v", i)
	}
	if s := f.status("one"); s.State != ready || info(t, s).RuntimeSpec == nil {
		t.Errorf("status %+v", s)
	}
	if _, err := f.Platform(f.ctx, "one"); !errdefs.IsInternal(err) {
		t.Errorf("platform: %v", err)
	}
	f.must(f.Shutdown(f.ctx, "one"))
	f.gone("one")
}

func TestPanicsInContainers(t *testing.T) {
	f := newFixture(t)
	f.run("one")
	live, err := f.Get("one")
	f.must(err)
	f.memory.OnPrepare = func(context.Context) error { panic("injected") }
	f.memory.OnRelease = f.memory.OnPrepare
	f.memory.OnAgent = func(context.Context) (*task.Client, error) { panic("injected") }
	if _, err := live.Prepare(f.ctx, container("c")); !errdefs.IsInternal(err) {
		t.Errorf("prepare: %v", err)
	}
	if err := live.Release(f.ctx, "c"); !errdefs.IsInternal(err) {
		t.Errorf("release: %v", err)
	}
	if _, err := live.Agent(f.ctx); !errdefs.IsInternal(err) {
		t.Errorf("agent: %v", err)
	}
	f.must(f.Shutdown(f.ctx, "one"))
}

func TestLive(t *testing.T) {
	f := newFixture(t)
	f.must(f.create("one"))
	live, err := f.Get("one")
	f.must(err)
	if _, err := live.Prepare(f.ctx, container("c")); !errdefs.IsFailedPrecondition(err) || live.Running() {
		t.Errorf("in a sandbox that has not started: %v", err)
	}
	f.start("one")
	bundle, err := live.Prepare(f.ctx, container("c"))
	f.must(err)
	if !strings.HasPrefix(bundle.Path, live.Dir()) || live.Dir() != f.file("one", "") || !live.Running() {
		t.Errorf("bundle %s below %s", bundle.Path, live.Dir())
	}
	if _, err := live.Agent(f.ctx); !errdefs.IsUnavailable(err) {
		t.Errorf("agent: %v", err)
	}
	f.must(live.Release(f.ctx, "c"))
	f.must(f.Shutdown(f.ctx, "one"))
	select {
	case <-live.Done():
	default:
		t.Error("it has not ended")
	}
	if _, err := f.Get("one"); !errdefs.IsNotFound(err) {
		t.Errorf("get: %v", err)
	}
	if at, found := f.CreatedAt("one"); found {
		t.Errorf("created at %v", at)
	}
}
