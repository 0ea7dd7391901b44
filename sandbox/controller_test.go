package sandbox_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/sandboxtest"
)

func TestConformance(t *testing.T) {
	sandboxtest.Run(t, sandboxtest.Suite{
		Backend: func(*testing.T) sandbox.Backend { return &sandboxtest.Memory{} },
	})
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(t.Context(), "test"), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func open(t *testing.T, dir string, m *sandboxtest.Memory) *sandbox.Controller {
	t.Helper()
	c, err := sandbox.New(testContext(t), sandbox.Config{Name: "memory", Dir: dir, Backend: m})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func create(t *testing.T, c *sandbox.Controller, id string) error {
	t.Helper()
	return c.Create(testContext(t), core.Sandbox{ID: id}, core.WithOptions(&runtime.PodSandboxConfig{}))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func empty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) > 0 {
		t.Errorf("left behind: %v", entries)
	}
}

var errHook = errors.New("injected")

func fail(context.Context) error { return errHook }

func TestFailedCallLeavesNothing(t *testing.T) {
	for name, m := range map[string]*sandboxtest.Memory{
		"create": {OnCreate: fail},
		"start":  {OnStart: fail},
		"panic":  {OnStart: func(context.Context) error { panic("injected") }},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := open(t, dir, m)
			err := create(t, c, "one")
			if err == nil {
				_, err = c.Start(testContext(t), "one")
			}
			if err == nil || (name != "panic" && !errors.Is(err, errHook)) {
				t.Fatalf("error %v", err)
			}
			empty(t, dir)
			if _, err := c.Status(testContext(t), "one", false); !errdefs.IsNotFound(err) {
				t.Errorf("status: %v", err)
			}
		})
	}
}

func TestStatusAnswersAndStopCancelsWhileStartRuns(t *testing.T) {
	entered := make(chan struct{})
	m := &sandboxtest.Memory{OnStart: func(ctx context.Context) error {
		close(entered)
		<-ctx.Done()
		return ctx.Err()
	}}
	dir := t.TempDir()
	c := open(t, dir, m)
	must(t, create(t, c, "one"))
	started := make(chan error, 1)
	go func() {
		_, err := c.Start(testContext(t), "one")
		started <- err
	}()
	<-entered
	s, err := c.Status(testContext(t), "one", true)
	must(t, err)
	if s.State != "SANDBOX_NOTREADY" || !strings.Contains(s.Info["info"], "starting") {
		t.Errorf("status %+v", s)
	}
	must(t, c.Stop(testContext(t), "one"))
	if err := <-started; !errors.Is(err, context.Canceled) {
		t.Errorf("start: %v", err)
	}
	empty(t, dir)
}

func TestSandboxThatEndsByItself(t *testing.T) {
	m := &sandboxtest.Memory{}
	dir := t.TempDir()
	c := open(t, dir, m)
	must(t, create(t, c, "one"))
	_, err := c.Start(testContext(t), "one")
	must(t, err)
	m.Last().End(7)
	e, err := c.Wait(testContext(t), "one")
	must(t, err)
	if e.ExitStatus != 7 || e.ExitedAt.IsZero() {
		t.Errorf("exit %+v", e)
	}
	must(t, c.Shutdown(testContext(t), "one"))
	empty(t, dir)
}

func TestFailedStopCanBeRepeated(t *testing.T) {
	failing := true
	m := &sandboxtest.Memory{OnStop: func(context.Context) error {
		if failing {
			return errHook
		}
		return nil
	}}
	dir := t.TempDir()
	c := open(t, dir, m)
	must(t, create(t, c, "one"))
	_, err := c.Start(testContext(t), "one")
	must(t, err)
	if err := c.Stop(testContext(t), "one"); !errors.Is(err, errHook) {
		t.Fatalf("stop: %v", err)
	}
	failing = false
	must(t, c.Shutdown(testContext(t), "one"))
	empty(t, dir)
}

func TestQuarantine(t *testing.T) {
	record := func(dir string) string { return filepath.Join(dir, "one", "sandbox.json") }
	write := func(content string) func(*testing.T, string) {
		return func(t *testing.T, dir string) { must(t, os.WriteFile(record(dir), []byte(content), 0o600)) }
	}
	for name, damage := range map[string]func(*testing.T, string){
		"half-written":    write(`{"version":1,"da`),
		"from the future": write(`{"version":99,"data":{}}`),
		"of another":      write(`{"version":1,"data":{"spec":{"ID":"two"}}}`),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := open(t, dir, &sandboxtest.Memory{})
			must(t, create(t, c, "one"))
			_, err := c.Start(testContext(t), "one")
			must(t, err)
			must(t, c.Close())
			damage(t, dir)

			c = open(t, dir, &sandboxtest.Memory{OnStop: func(context.Context) error { t.Error("touched"); return nil }})
			s, err := c.Status(testContext(t), "one", true)
			must(t, err)
			if s.State != "SANDBOX_NOTREADY" || s.Info["reason"] == "" {
				t.Errorf("status %+v", s)
			}
			if _, err := c.Get("one"); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("get: %v", err)
			}
			must(t, c.Stop(testContext(t), "one"))
			must(t, c.Shutdown(testContext(t), "one"))
			if _, err := os.Stat(filepath.Join(dir, "one", "running")); err != nil {
				t.Errorf("the sandbox itself: %v", err)
			}
		})
	}
}

func TestRestoreThatFailsQuarantines(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, &sandboxtest.Memory{})
	must(t, create(t, c, "one"))
	_, err := c.Start(testContext(t), "one")
	must(t, err)
	must(t, c.Close())
	c = open(t, dir, &sandboxtest.Memory{OnRestore: fail})
	if _, err := c.Get("one"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), errHook.Error()) {
		t.Errorf("get: %v", err)
	}
}
