package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/events"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/sandboxtest"
)

const (
	ready    = "SANDBOX_READY"
	notReady = "SANDBOX_NOTREADY"
	unknown  = "SANDBOX_UNKNOWN"
)

// errHook is what a hook of the backend in memory returns.
var errHook = errors.New("injected")

func fail(context.Context) error { return errHook }

// fixture is a Controller of sandboxes in memory.
type fixture struct {
	*sandbox.Controller
	*testing.T
	ctx    context.Context
	dir    string // of the Controller
	memory *sandboxtest.Memory
	events publisher
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), "test"), time.Minute)
	t.Cleanup(cancel)
	f := &fixture{T: t, ctx: ctx, dir: filepath.Join(t.TempDir(), "boxes"), memory: &sandboxtest.Memory{World: t.TempDir()}}
	f.open()
	t.Cleanup(func() { f.must(f.Close()) })
	return f
}

func (f *fixture) open() {
	f.Helper()
	c, err := sandbox.New(f.ctx, sandbox.Config{Name: "memory", Dir: f.dir, Backend: f.memory, Events: &f.events})
	f.must(err)
	f.Controller = c
}

// restart plays the end of the daemon and its next start, with the backend
// that the test has set by then.
func (f *fixture) restart() {
	f.Helper()
	f.must(f.Close())
	f.open()
}

// life makes a new backend in the same world.
func (f *fixture) life(m *sandboxtest.Memory) {
	m.World = f.memory.World
	f.memory = m
}

func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) create(id string) error {
	return f.Create(f.ctx, core.Sandbox{ID: id, Labels: map[string]string{"name": "name of " + id}}, core.WithOptions(&runtime.PodSandboxConfig{}))
}

// run makes a sandbox that runs.
func (f *fixture) run(id string) {
	f.Helper()
	f.must(f.create(id))
	f.start(id)
}

func (f *fixture) start(id string) core.ControllerInstance {
	f.Helper()
	instance, err := f.Start(f.ctx, id)
	f.must(err)
	return instance
}

func (f *fixture) status(id string) core.ControllerStatus {
	f.Helper()
	s, err := f.Status(f.ctx, id, true)
	f.must(err)
	return s
}

func (f *fixture) want(id, state string) {
	f.Helper()
	if s := f.status(id); s.State != state {
		f.Errorf("sandbox %s is %s, want %s: %v", id, s.State, state, s.Info)
	}
}

// wait waits for the end of a sandbox.
func (f *fixture) wait(id string) core.ExitStatus {
	f.Helper()
	e, err := f.Wait(f.ctx, id)
	f.must(err)
	return e
}

// gone holds that nothing is left of a sandbox.
func (f *fixture) gone(id string) {
	f.Helper()
	if _, err := f.Status(f.ctx, id, false); !errdefs.IsNotFound(err) {
		f.Errorf("status of a removed sandbox: %v", err)
	}
	for _, path := range []string{filepath.Join(f.dir, id), filepath.Join(f.memory.World, id)} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			f.Errorf("left of a removed sandbox: %s (%v)", path, err)
		}
	}
}

// lives holds that a sandbox has its effect.
func (f *fixture) lives(id string) {
	f.Helper()
	if _, err := os.Stat(filepath.Join(f.memory.World, id)); err != nil {
		f.Errorf("the sandbox itself: %v", err)
	}
}

func (f *fixture) file(id, name string) string { return filepath.Join(f.dir, id, name) }

// write replaces a file in a sandbox's directory.
func (f *fixture) write(id, name, content string) {
	f.Helper()
	f.must(os.WriteFile(f.file(id, name), []byte(content), 0o600))
}

// edit replaces text in all records of a sandbox.
func (f *fixture) edit(id, old, changed string) {
	f.Helper()
	for _, name := range []string{"sandbox.json", "state.json"} {
		b, err := os.ReadFile(f.file(id, name))
		f.must(err)
		if !strings.Contains(string(b), old) {
			f.Fatalf("%s has no %s: %s", name, old, b)
		}
		f.write(id, name, strings.ReplaceAll(string(b), old, changed))
	}
}

// jam keeps the state of a sandbox from being recorded, as a full disk does.
func (f *fixture) jam(id string) {
	f.Helper()
	f.must(os.Mkdir(f.file(id, ".state.json.tmp"), 0o700))
}

// async runs a call that may block.
func async(call func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- call() }()
	return done
}

func (f *fixture) await(done <-chan error) error {
	f.Helper()
	select {
	case err := <-done:
		return err
	case <-f.ctx.Done():
		f.Fatal("a call does not end")
		return nil
	}
}

// hold makes a hook that blocks until it is let go or canceled.
func hold() (hook func(context.Context) error, entered, open chan struct{}) {
	entered, open = make(chan struct{}), make(chan struct{})
	var once sync.Once
	return func(ctx context.Context) error {
		once.Do(func() { close(entered) })
		select {
		case <-open:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}, entered, open
}

// publisher keeps what is published.
type publisher struct {
	mu   sync.Mutex
	list []string
}

// Publish implements events.Publisher.
func (p *publisher) Publish(ctx context.Context, topic string, event events.Event) error {
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return err
	}
	e := event.(interface{ GetSandboxID() string })
	p.mu.Lock()
	defer p.mu.Unlock()
	p.list = append(p.list, fmt.Sprintf("%s %s %s", namespace, topic, e.GetSandboxID()))
	return ctx.Err()
}

func (p *publisher) published() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.list)
}
