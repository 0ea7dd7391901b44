package sandbox_test

import (
	"context"
	"encoding/json"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/sandboxtest"
)

// stubborn is a backend whose sandboxes have a Wait of their own.
type stubborn struct {
	*sandboxtest.Memory
	wait func(ctx context.Context) (sandbox.Exit, error)
}

func (b stubborn) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	s, err := b.Memory.Create(ctx, spec)
	return waiter{s, b.wait}, err
}

func (b stubborn) Restore(ctx context.Context, spec sandbox.Spec, saved json.RawMessage) (sandbox.Sandbox, error) {
	s, err := b.Memory.Restore(ctx, spec, saved)
	return waiter{s, b.wait}, err
}

type waiter struct {
	sandbox.Sandbox
	wait func(ctx context.Context) (sandbox.Exit, error)
}

func (w waiter) Wait(ctx context.Context) (sandbox.Exit, error) { return w.wait(ctx) }

// running makes a sandbox of such a backend in a bubble of synctest.
func running(t *testing.T, wait func(ctx context.Context) (sandbox.Exit, error)) (context.Context, *sandbox.Controller) {
	t.Helper()
	ctx := namespaces.WithNamespace(t.Context(), "test")
	c, err := sandbox.New(ctx, sandbox.Config{Name: "stubborn", Dir: filepath.Join(t.TempDir(), "boxes"), Backend: stubborn{&sandboxtest.Memory{}, wait}})
	if err == nil {
		err = c.Create(ctx, core.Sandbox{ID: "one"})
	}
	if err == nil {
		_, err = c.Start(ctx, "one")
	}
	if err != nil {
		t.Fatal(err)
	}
	return ctx, c
}

// A sandbox that cannot be followed is taken for ended.
func TestWaitThatFails(t *testing.T) {
	for name, wait := range map[string]func(context.Context) (sandbox.Exit, error){
		"error": func(context.Context) (sandbox.Exit, error) { return sandbox.Exit{}, errHook },
		"panic": func(context.Context) (sandbox.Exit, error) { panic("injected") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, c := running(t, wait)
				if e, err := c.Wait(ctx, "one"); err != nil || e.ExitStatus != 255 || e.ExitedAt.IsZero() {
					t.Errorf("exit %+v, %v", e, err)
				}
				if err := c.Shutdown(ctx, "one"); err != nil {
					t.Error(err)
				}
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// Neither Stop nor Close waits for ever for a sandbox that does not say that it
// has ended.
func TestWaitThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		ctx, c := running(t, func(context.Context) (sandbox.Exit, error) {
			<-release
			return sandbox.Exit{Status: 9, At: time.Now()}, nil
		})
		if err := c.Stop(ctx, "one"); err != nil {
			t.Error(err)
		}
		if e, err := c.Wait(ctx, "one"); err != nil || e.ExitStatus != 255 {
			t.Errorf("exit %+v, %v", e, err)
		}
		if err := c.Shutdown(ctx, "one"); err != nil {
			t.Error(err)
		}
		if err := c.Close(); !errdefs.IsUnavailable(err) {
			t.Errorf("close: %v", err)
		}
		close(release)
		synctest.Wait()
		if _, err := c.Status(ctx, "one", false); !errdefs.IsNotFound(err) {
			t.Errorf("its late end brings it back: %v", err)
		}
	})
}

// After Close nothing is followed and nothing is recovered: that is for the
// next daemon.
func TestCallsAfterClose(t *testing.T) {
	f := newFixture(t)
	f.run("one")
	f.must(f.Close())
	f.must(f.create("two"))
	f.start("two")
	f.open()
	f.want("one", ready)
	f.want("two", ready)
	f.must(f.Shutdown(f.ctx, "one"))
	f.must(f.Shutdown(f.ctx, "two"))
}
