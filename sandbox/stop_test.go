package sandbox_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
)

func TestSandboxThatEndsByItself(t *testing.T) {
	f := newFixture(t)
	f.run("one")
	live, err := f.Get("one")
	f.must(err)
	f.memory.Last().End(7)
	if e := f.wait("one"); e.ExitStatus != 7 || e.ExitedAt.IsZero() {
		t.Errorf("exit %+v", e)
	}
	<-live.Done()
	if live.Running() || live.Exit().Status != 7 {
		t.Errorf("running %t, exit %+v", live.Running(), live.Exit())
	}
	f.want("one", notReady)
	if s := f.status("one"); s.ExitedAt.IsZero() || s.Pid != 0 {
		t.Errorf("status %+v", s)
	}
	f.restart() // the exit is recorded
	if e := f.wait("one"); e.ExitStatus != 7 {
		t.Errorf("exit after a restart %+v", e)
	}
	f.want("one", notReady)
	f.must(f.Stop(f.ctx, "one"))
	f.must(f.Shutdown(f.ctx, "one"))
	f.gone("one")
	want := []string{"test /sandboxes/create one", "test /sandboxes/start one", "test /sandboxes/exit one"}
	if got := f.events.published(); !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
}

func TestEventsOfAStop(t *testing.T) {
	f := newFixture(t)
	f.run("one")
	f.must(f.Stop(f.ctx, "one"))
	f.must(f.Stop(f.ctx, "one"))
	f.must(f.Shutdown(f.ctx, "one"))
	want := []string{"test /sandboxes/create one", "test /sandboxes/start one", "test /sandboxes/exit one"}
	if got := f.events.published(); !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
}

func TestFailedStopCanBeRepeated(t *testing.T) {
	for name, hook := range map[string]func(context.Context) error{
		"error": fail,
		"panic": func(context.Context) error { panic(errHook) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.run("one")
			f.memory.OnStop = hook
			if err := f.Stop(f.ctx, "one"); err == nil || !strings.Contains(err.Error(), "injected") {
				t.Fatalf("stop: %v", err)
			}
			f.want("one", unknown)
			if err := f.Shutdown(f.ctx, "one"); err == nil {
				t.Fatal("shut down though it was not stopped")
			}
			f.lives("one")
			f.memory.OnStop = nil
			f.must(f.Shutdown(f.ctx, "one"))
			f.gone("one")
		})
	}
}

func TestFailedDeleteCanBeRepeated(t *testing.T) {
	f := newFixture(t)
	f.run("one")
	f.memory.OnDelete = fail
	if err := f.Shutdown(f.ctx, "one"); !errors.Is(err, errHook) {
		t.Fatalf("shutdown: %v", err)
	}
	f.wait("one")
	if _, err := f.Start(f.ctx, "one"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("start: %v", err)
	}
	f.memory.OnDelete = nil
	f.must(f.Shutdown(f.ctx, "one"))
	f.gone("one")
}

// A full disk must not keep a sandbox alive.
func TestStopOnFullDisk(t *testing.T) {
	f := newFixture(t)
	f.run("one")
	f.jam("one")
	f.must(f.Stop(f.ctx, "one"))
	f.want("one", notReady)
	f.must(f.Shutdown(f.ctx, "one"))
	f.gone("one")

	f.run("two")
	f.jam("two")
	f.memory.Last().End(3)
	if e := f.wait("two"); e.ExitStatus != 3 {
		t.Errorf("exit %+v", e)
	}
	f.restart() // its record says that it runs
	f.wait("two")
	f.must(f.Shutdown(f.ctx, "two"))
	f.gone("two")
}

// Stop and Shutdown wait for who is at it, as long as their callers do.
func TestStopWaitsForItsTurn(t *testing.T) {
	f := newFixture(t)
	f.run("one")
	hook, entered, open := hold()
	f.memory.OnStop = hook
	first := async(func() error { return f.Stop(f.ctx, "one") })
	<-entered
	err := f.Stop(f.ctx, "one", core.WithTimeout(time.Millisecond))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "stopping") {
		t.Errorf("second stop: %v", err)
	}
	canceled, cancel := context.WithCancel(f.ctx)
	cancel()
	if err := f.Shutdown(canceled, "one"); !errors.Is(err, context.Canceled) {
		t.Errorf("shutdown: %v", err)
	}
	if _, err := f.Start(canceled, "one"); !errors.Is(err, context.Canceled) {
		t.Errorf("start: %v", err)
	}
	f.want("one", unknown)
	last := async(func() error { return f.Shutdown(f.ctx, "one") })
	close(open)
	f.must(f.await(first))
	f.must(f.await(last))
	f.gone("one")
}

// A stop that its caller gave up leaves a sandbox that can be stopped.
func TestStopWithATimeout(t *testing.T) {
	f := newFixture(t)
	f.run("one")
	hook, _, _ := hold()
	f.memory.OnStop = hook
	if err := f.Stop(f.ctx, "one", core.WithTimeout(time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stop: %v", err)
	}
	f.memory.OnStop = nil
	f.must(f.Stop(f.ctx, "one", core.WithTimeout(0)))
	f.must(f.Shutdown(f.ctx, "one"))
}

// A directory with a mount in it is not removed: that would remove what is
// mounted.
func TestMountedDirectoryStays(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts")
	}
	f := newFixture(t)
	f.run("one")
	f.run("one2") // a directory whose name begins with the other's
	treasure := t.TempDir()
	f.must(os.WriteFile(treasure+"/file", nil, 0o600))
	for _, id := range []string{"one", "one2"} {
		f.must(os.Mkdir(f.file(id, "mnt"), 0o700))
	}
	bind(t, treasure, f.file("one2", "mnt"))
	f.must(f.Shutdown(f.ctx, "one"))
	err := f.Shutdown(f.ctx, "one2")
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), f.file("one2", "mnt")) {
		t.Errorf("shutdown: %v", err)
	}
	if _, err := os.Stat(treasure + "/file"); err != nil {
		t.Error(err)
	}
	unbind(t, f.file("one2", "mnt"))
	f.must(f.Shutdown(f.ctx, "one2"))
	f.gone("one2")
}
