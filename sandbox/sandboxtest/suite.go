package sandboxtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
)

// deadline bounds one case.
const deadline = time.Minute

// Suite is what a backend's conformance is tested with.
type Suite struct {
	// Backend makes the backend under test. It is called again for each
	// restart of the daemon that a case plays.
	Backend func(t *testing.T) sandbox.Backend

	// Config of the pods. Each gets a name and an id of its own.
	Config *runtime.PodSandboxConfig
}

// Run runs all cases.
func Run(t *testing.T, s Suite) {
	for name, run := range map[string]func(*testing.T, *bench){
		"Lifecycle":           lifecycle,
		"StopTwice":           stopTwice,
		"ShutdownWithoutStop": shutdownWithoutStop,
		"UnknownSandbox":      unknownSandbox,
		"StartTwice":          startTwice,
		"CreateTwice":         createTwice,
		"RestartCreated":      restartCreated,
		"RestartRunning":      restartRunning,
		"RestartStopped":      restartStopped,
		"BadOptions":          badOptions,
		"ManyAtOnce":          manyAtOnce,
	} {
		t.Run(name, func(t *testing.T) { run(t, newBench(t, s)) })
	}
}

// bench is a Controller under test.
type bench struct {
	*sandbox.Controller
	t   *testing.T
	s   Suite
	ctx context.Context
	dir string
}

func newBench(t *testing.T, s Suite) *bench {
	dir, err := os.MkdirTemp("", "sb") // short, for sockets
	if err != nil {
		t.Fatal(err)
	}
	// As containerd's state directory: users of pods pass through it.
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), "sandboxtest"), deadline)
	b := &bench{t: t, s: s, ctx: ctx, dir: dir}
	b.open()
	t.Cleanup(func() {
		defer cancel()
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		// Remove fails where a case left a sandbox behind.
		if err := errors.Join(os.Remove(filepath.Join(dir, "boxes")), os.Remove(dir)); err != nil {
			t.Errorf("leak: %v", err)
		}
	})
	return b
}

func (b *bench) open() {
	b.t.Helper()
	c, err := sandbox.New(b.ctx, sandbox.Config{Name: "test", Dir: filepath.Join(b.dir, "boxes"), Backend: b.s.Backend(b.t)})
	b.must(err)
	b.Controller = c
}

// restart plays the death of the daemon and its next start.
func (b *bench) restart() {
	b.t.Helper()
	b.must(b.Close())
	b.open()
}

func (b *bench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) create(id string, options ...byte) error {
	config := &runtime.PodSandboxConfig{}
	if b.s.Config != nil {
		proto.Merge(config, b.s.Config)
	}
	config.Metadata = &runtime.PodSandboxMetadata{Name: id, Uid: id, Namespace: "default"}
	info := core.Sandbox{ID: id, Labels: map[string]string{"name": id + "_default"}}
	if len(options) > 0 {
		o, err := typeurl.MarshalAny(&runtimeoptions.Options{ConfigBody: options})
		b.must(err)
		info.Runtime.Options = o
	}
	return b.Create(b.ctx, info, core.WithOptions(config))
}

func (b *bench) state(id string) string {
	b.t.Helper()
	s, err := b.Status(b.ctx, id, true)
	b.must(err)
	return s.State
}

func (b *bench) want(id, state string) {
	b.t.Helper()
	if got := b.state(id); got != state {
		b.t.Fatalf("sandbox %s is %s, want %s", id, got, state)
	}
}

func (b *bench) run(id string) core.ControllerInstance {
	b.t.Helper()
	b.must(b.create(id))
	instance, err := b.Start(b.ctx, id)
	b.must(err)
	return instance
}

func (b *bench) gone(id string) {
	b.t.Helper()
	if _, err := b.Status(b.ctx, id, false); !errdefs.IsNotFound(err) {
		b.t.Errorf("status of a removed sandbox: %v", err)
	}
	if _, err := os.Stat(filepath.Join(b.dir, "boxes", id)); !errors.Is(err, os.ErrNotExist) {
		b.t.Errorf("directory of a removed sandbox: %v", err)
	}
}

const ready, notReady = "SANDBOX_READY", "SANDBOX_NOTREADY"

func lifecycle(t *testing.T, b *bench) {
	b.must(b.create("one"))
	b.want("one", notReady)
	instance, err := b.Start(b.ctx, "one")
	b.must(err)
	if instance.SandboxID != "one" || instance.CreatedAt.IsZero() || instance.Spec == nil || instance.Labels["name"] != "one_default" {
		t.Errorf("instance %+v", instance)
	}
	b.want("one", ready)
	exited := make(chan core.ExitStatus, 1)
	go func() {
		e, err := b.Wait(b.ctx, "one")
		if err != nil {
			t.Error(err)
		}
		exited <- e
	}()
	b.must(b.Stop(b.ctx, "one"))
	if e := <-exited; e.ExitedAt.IsZero() {
		t.Errorf("exit %+v", e)
	}
	b.want("one", notReady)
	b.must(b.Shutdown(b.ctx, "one"))
	b.gone("one")
}

func stopTwice(_ *testing.T, b *bench) {
	b.run("one")
	b.must(b.Stop(b.ctx, "one"))
	b.must(b.Stop(b.ctx, "one"))
	b.must(b.Shutdown(b.ctx, "one"))
	b.must(b.Shutdown(b.ctx, "one"))
	b.gone("one")
}

func shutdownWithoutStop(_ *testing.T, b *bench) {
	b.run("one")
	b.must(b.Shutdown(b.ctx, "one"))
	b.gone("one")
}

func unknownSandbox(t *testing.T, b *bench) {
	if _, err := b.Start(b.ctx, "none"); !errdefs.IsNotFound(err) {
		t.Errorf("start: %v", err)
	}
	if _, err := b.Wait(b.ctx, "none"); !errdefs.IsNotFound(err) {
		t.Errorf("wait: %v", err)
	}
	if _, err := b.Metrics(b.ctx, "none"); !errdefs.IsNotFound(err) {
		t.Errorf("metrics: %v", err)
	}
	b.must(b.Stop(b.ctx, "none"))
	b.must(b.Shutdown(b.ctx, "none"))
}

func startTwice(t *testing.T, b *bench) {
	b.run("one")
	if _, err := b.Start(b.ctx, "one"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second start: %v", err)
	}
	b.want("one", ready) // and it did no harm
	b.must(b.Shutdown(b.ctx, "one"))
}

func createTwice(t *testing.T, b *bench) {
	b.run("one")
	if err := b.create("one"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second create: %v", err)
	}
	info := core.Sandbox{ID: "two", Labels: map[string]string{"name": "one_default"}}
	if err := b.Create(b.ctx, info, core.WithOptions(&runtime.PodSandboxConfig{})); !errdefs.IsAlreadyExists(err) {
		t.Errorf("create with a taken name: %v", err)
	}
	b.want("one", ready)
	b.must(b.Shutdown(b.ctx, "one"))
}

// A sandbox that was never started belongs to a call that died.
func restartCreated(_ *testing.T, b *bench) {
	b.must(b.create("one"))
	b.restart()
	b.gone("one")
}

func restartRunning(t *testing.T, b *bench) {
	instance := b.run("one")
	for range 2 {
		b.restart()
		b.want("one", ready)
		s, err := b.Status(b.ctx, "one", false)
		b.must(err)
		if !s.CreatedAt.Equal(instance.CreatedAt) {
			t.Errorf("created at %v, before the restart at %v", s.CreatedAt, instance.CreatedAt)
		}
	}
	b.must(b.Stop(b.ctx, "one"))
	if _, err := b.Wait(b.ctx, "one"); err != nil {
		t.Error(err)
	}
	b.must(b.Shutdown(b.ctx, "one"))
	b.gone("one")
}

func restartStopped(t *testing.T, b *bench) {
	b.run("one")
	b.must(b.Stop(b.ctx, "one"))
	before, err := b.Wait(b.ctx, "one")
	b.must(err)
	b.restart()
	b.want("one", notReady)
	after, err := b.Wait(b.ctx, "one")
	b.must(err)
	if !after.ExitedAt.Equal(before.ExitedAt) || after.ExitStatus != before.ExitStatus {
		t.Errorf("exit %+v, before the restart %+v", after, before)
	}
	b.must(b.Shutdown(b.ctx, "one"))
	b.gone("one")
}

func badOptions(t *testing.T, b *bench) {
	if err := b.create("one", []byte("no_such_option = 1\n")...); !errdefs.IsInvalidArgument(err) {
		t.Errorf("unknown option: %v", err)
	}
	b.gone("one")
}

// manyAtOnce is for the race detector.
func manyAtOnce(t *testing.T, b *bench) {
	var g sync.WaitGroup
	for _, id := range []string{"a", "b", "c", "d"} {
		b.must(b.create(id))
		for range 3 {
			g.Go(func() { _, _ = b.Start(b.ctx, id) })
			g.Go(func() {
				if _, err := b.Status(b.ctx, id, true); err != nil && !errdefs.IsNotFound(err) {
					t.Error(err)
				}
			})
			g.Go(func() {
				if err := b.Stop(b.ctx, id); err != nil {
					t.Error(err)
				}
			})
		}
		g.Go(func() { _, _ = b.Metrics(b.ctx, id) })
	}
	g.Wait()
	for _, id := range []string{"a", "b", "c", "d"} {
		b.must(b.Shutdown(b.ctx, id))
		b.gone(id)
	}
}
