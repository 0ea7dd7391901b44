package sandboxtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
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
	b.open(b.backend())
	t.Cleanup(func() {
		defer cancel()
		b.must(b.Close())
		// Remove fails where a case left a sandbox behind.
		if err := errors.Join(os.Remove(b.boxes()), os.Remove(dir)); err != nil {
			t.Errorf("leak: %v", err)
		}
		if s.Leaks != nil {
			s.Leaks(t)
		}
	})
	return b
}

func (b *bench) boxes() string { return filepath.Join(b.dir, "boxes") }

func (b *bench) backend() sandbox.Backend { return b.s.Backend(b.t) }

// open starts a daemon.
func (b *bench) open(backend sandbox.Backend) {
	b.t.Helper()
	c, err := sandbox.New(b.ctx, sandbox.Config{Name: "test", Dir: b.boxes(), Backend: backend})
	b.must(err)
	b.Controller = c
}

// restart plays the end of the daemon and its next start.
func (b *bench) restart() {
	b.t.Helper()
	b.must(b.Close())
	b.open(b.backend())
}

// gated starts the daemon with a gate.
func (b *bench) gated(at point) *gate {
	b.t.Helper()
	b.must(b.Close())
	g := newGate(b.backend(), at)
	b.open(g)
	return g
}

// reach waits until a call is stuck at the gate.
func (b *bench) reach(g *gate) {
	b.t.Helper()
	select {
	case <-g.reached:
	case <-b.ctx.Done():
		b.t.Fatalf("nothing happens %s", g.at)
	}
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

func (b *bench) want(id, state string) {
	b.t.Helper()
	s, err := b.Status(b.ctx, id, true)
	b.must(err)
	if s.State != state {
		b.t.Fatalf("sandbox %s is %s, want %s: %v", id, s.State, state, s.Info)
	}
}

// run makes a sandbox that runs.
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
	if _, err := os.Stat(filepath.Join(b.boxes(), id)); !errors.Is(err, os.ErrNotExist) {
		b.t.Errorf("directory of a removed sandbox: %v", err)
	}
}

// async runs a call that may be stuck.
func async(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}

// await returns the error of such a call.
func (b *bench) await(what string, done <-chan error) error {
	b.t.Helper()
	select {
	case err := <-done:
		return err
	case <-b.ctx.Done():
		b.t.Fatalf("%s does not end", what)
		return nil
	}
}

const ready, notReady = "SANDBOX_READY", "SANDBOX_NOTREADY"
