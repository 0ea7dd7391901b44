package sandbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/sandboxtest"
)

func container(id string) *sandbox.Container { return &sandbox.Container{ID: id} }

// quarantined holds that a sandbox is left alone, and that everybody is told
// why.
func (f *fixture) quarantined(id, why string) {
	f.Helper()
	s := f.status(id)
	if s.State != unknown || !strings.Contains(s.Info["reason"], why) || info(f.T, s).Status != "quarantined" {
		f.Errorf("status %+v", s)
	}
	if age := time.Since(s.CreatedAt); age < 0 || age > time.Hour {
		f.Errorf("created at %v", s.CreatedAt)
	}
	if _, err := f.Get(id); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), why) {
		f.Errorf("get: %v", err)
	}
	if _, err := f.Metrics(f.ctx, id); !errdefs.IsUnavailable(err) {
		f.Errorf("metrics: %v", err)
	}
	if _, err := f.Platform(f.ctx, id); err != nil {
		f.Errorf("platform: %v", err)
	}
	if _, err := f.Start(f.ctx, id); !errdefs.IsFailedPrecondition(err) {
		f.Errorf("start: %v", err)
	}
	for call, err := range map[string]error{"stop": f.Stop(f.ctx, id), "shutdown": f.Shutdown(f.ctx, id)} {
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), f.file(id, "")) {
			f.Errorf("%s: %v", call, err)
		}
	}
	ctx, cancel := context.WithTimeout(f.ctx, time.Millisecond)
	defer cancel()
	if _, err := f.Wait(ctx, id); !errors.Is(err, context.DeadlineExceeded) {
		f.Errorf("wait: %v", err)
	}
	f.lives(id)
}

// waiter waits for the end of a sandbox that may be gone by then.
func (f *fixture) waiter(id string) <-chan error {
	return async(func() error {
		_, err := f.Wait(f.ctx, id)
		if errdefs.IsNotFound(err) {
			return nil
		}
		return err
	})
}

// A sandbox whose records are not understood is left alone, until they are
// repaired or it is given up.
func TestDamagedRecords(t *testing.T) {
	for file, damages := range map[string]map[string]struct{ content, why string }{
		"sandbox.json": {
			"empty":           {"", "damaged"},
			"half-written":    {`{"version":1,"da`, "damaged"},
			"from the future": {`{"version":99,"data":{}}`, "version 99"},
			"of another":      {`{"version":1,"boot":"` + record.Boot() + `","data":{"spec":{"ID":"two"}}}`, `"two"`},
			"missing":         {"\x00", "missing"},
		},
		"state.json": {
			"empty":             {"", "damaged"},
			"half-written":      {`{"version":1,"da`, "damaged"},
			"from the future":   {`{"version":99,"data":{}}`, "version 99"},
			"an unknown state":  {`{"version":1,"boot":"` + record.Boot() + `","data":{"state":"paused"}}`, `"paused"`},
			"without any state": {`{"version":1,"boot":"` + record.Boot() + `","data":{}}`, `""`},
			"missing":           {"\x00", "missing"},
		},
	} {
		for name, damage := range damages {
			t.Run(file+" "+name, func(t *testing.T) {
				f := newFixture(t)
				f.run("one")
				f.run("bystander")
				f.must(f.Close())
				good, err := os.ReadFile(f.file("one", file))
				f.must(err)
				if damage.content == "\x00" {
					f.must(os.Remove(f.file("one", file)))
				} else {
					f.write("one", file, damage.content)
				}
				touched := func(context.Context) error { t.Error("touched"); return nil }
				f.life(&sandboxtest.Memory{OnStop: touched, OnDelete: touched})
				f.open()
				f.quarantined("one", damage.why)
				f.want("bystander", ready)
				f.restart()
				f.quarantined("one", damage.why)

				// With the record repaired, whoever stops it can do so at once.
				f.memory.OnStop, f.memory.OnDelete = nil, nil
				f.write("one", file, string(good))
				f.must(f.Stop(f.ctx, "one"))
				f.must(f.Shutdown(f.ctx, "one"))
				f.gone("one")
				f.must(f.Shutdown(f.ctx, "bystander"))
			})
		}
	}
}

// A repaired record is back after a restart, and nothing has happened to it.
func TestRepairedRecord(t *testing.T) {
	f := newFixture(t)
	f.run("one")
	before := f.status("one")
	f.must(f.Close())
	good, err := os.ReadFile(f.file("one", "sandbox.json"))
	f.must(err)
	f.write("one", "sandbox.json", "{")
	f.open()
	f.quarantined("one", "damaged")
	f.write("one", "sandbox.json", string(good))
	f.restart()
	if s := f.status("one"); s.State != ready || !s.CreatedAt.Equal(before.CreatedAt) {
		t.Errorf("status %+v, want %+v", s, before)
	}
	f.must(f.Shutdown(f.ctx, "one"))
	f.gone("one")
}

// Who moves the directory away has taken the sandbox over.
func TestGivenUp(t *testing.T) {
	f := newFixture(t)
	f.run("one")
	f.must(f.Close())
	f.write("one", "state.json", "{")
	f.open()
	f.quarantined("one", "damaged")
	waited := f.waiter("one")
	f.must(os.Rename(f.file("one", ""), filepath.Join(t.TempDir(), "one")))
	f.must(f.Stop(f.ctx, "one"))
	f.must(f.await(waited))
	f.must(f.Shutdown(f.ctx, "one"))
	if _, err := f.Status(f.ctx, "one", false); !errdefs.IsNotFound(err) {
		t.Errorf("status: %v", err)
	}
	f.lives("one") // it was for them to end it
}

// A backend that cannot reopen a sandbox quarantines it, and is asked again by
// whoever wants an end of it.
func TestFailedRestore(t *testing.T) {
	for name, hook := range map[string]func(context.Context) error{
		"error": fail,
		"panic": func(context.Context) error { panic("injected") },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.run("one")
			f.must(f.Close())
			f.life(&sandboxtest.Memory{OnRestore: hook})
			f.open()
			f.quarantined("one", "injected")
			if err := f.create("one"); !errdefs.IsAlreadyExists(err) {
				t.Errorf("its id again: %v", err)
			}
			waited := f.waiter("one")
			f.memory.OnRestore = nil
			f.must(f.Shutdown(f.ctx, "one"))
			f.must(f.await(waited))
			f.gone("one")
		})
	}
}

// Who needs a quarantined sandbox has its recovery tried again, once for all who
// ask meanwhile.
func TestRecover(t *testing.T) {
	const callers = 5
	dir, world := t.TempDir(), t.TempDir()
	ctx := namespaces.WithNamespace(t.Context(), "test")
	first := &fixture{T: t, ctx: ctx, dir: dir, memory: &sandboxtest.Memory{World: world}}
	first.open()
	first.run("one")
	first.must(first.Close())

	synctest.Test(t, func(t *testing.T) {
		ctx := namespaces.WithNamespace(t.Context(), "test")
		attempts, result := make(chan struct{}, callers), make(chan error, callers)
		result <- errHook
		memory := &sandboxtest.Memory{World: world, OnRestore: func(context.Context) error {
			attempts <- struct{}{}
			return <-result
		}}
		c, err := sandbox.New(ctx, sandbox.Config{Name: "memory", Dir: dir, Backend: memory})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Recover(ctx, "none"); !errdefs.IsNotFound(err) {
			t.Errorf("an unknown one: %v", err)
		}
		recovered := async(func() error { return c.Await(ctx, "one") })
		for i, want := range []error{errHook, nil} {
			all := make(chan error, callers)
			for range callers {
				go func() {
					_, err := c.Recover(ctx, "one")
					all <- err
				}()
			}
			synctest.Wait()
			if n := len(attempts); n != i+2 {
				t.Errorf("%d attempts to recover it, want %d", n, i+2)
			}
			select {
			case err := <-recovered:
				t.Errorf("taken for recovered: %v", err)
			default:
			}
			result <- want
			for range callers {
				if err := <-all; (err == nil) != (want == nil) || err != nil && !strings.Contains(err.Error(), want.Error()) {
					t.Errorf("recover: %v, want %v", err, want)
				}
			}
		}
		if err := <-recovered; err != nil {
			t.Error(err)
		}
		if live, err := c.Recover(ctx, "one"); err != nil || !live.Running() {
			t.Errorf("afterwards: %v", err)
		}
		if err := c.Shutdown(ctx, "one"); err != nil {
			t.Error(err)
		}
	})
}

// After a reboot nothing lives, whatever the records say.
func TestReboot(t *testing.T) {
	for name, prepare := range map[string]func(f *fixture){
		"running":     func(f *fixture) { f.run("one") },
		"stopped":     func(f *fixture) { f.run("one"); f.must(f.Stop(f.ctx, "one")) },
		"stop failed": func(f *fixture) { f.run("one"); f.memory.OnStop = fail; _ = f.Stop(f.ctx, "one") },
		"its state lost": func(f *fixture) {
			f.run("one")
			f.must(f.Close())
			f.edit("one", record.Boot(), "other")
			f.write("one", "state.json", "")
		},
		"its origin lost": func(f *fixture) {
			f.run("one")
			f.must(f.Close())
			f.edit("one", record.Boot(), "other")
			f.write("one", "sandbox.json", "")
		},
		"rebooted already": func(f *fixture) { f.run("one"); f.must(f.Close()); f.edit("one", record.Boot(), "other"); f.open() },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			prepare(f)
			f.must(f.Close())
			if !strings.Contains(name, " ") || name == "stop failed" {
				f.edit("one", record.Boot(), "other")
			}
			_ = os.Remove(filepath.Join(f.memory.World, "one"))
			f.life(&sandboxtest.Memory{OnRestore: func(context.Context) error { t.Error("the backend is asked"); return nil }})
			f.open()
			f.want("one", notReady)
			if e := f.wait("one"); e.ExitedAt.IsZero() || name == "running" && e.ExitStatus != 255 {
				t.Errorf("exit %+v", e)
			}
			live, err := f.Get("one")
			f.must(err)
			<-live.Done()
			if _, err := live.Agent(f.ctx); !errdefs.IsUnavailable(err) {
				t.Errorf("agent: %v", err)
			}
			if _, err := live.Prepare(f.ctx, container("c")); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("prepare: %v", err)
			}
			f.must(live.Release(f.ctx, "c"))
			f.must(f.Stop(f.ctx, "one"))
			f.must(f.Shutdown(f.ctx, "one"))
			f.gone("one")
		})
	}
}

// What was half-made or half-removed before a reboot is nobody's.
func TestRebootOfTheHalfMade(t *testing.T) {
	f := newFixture(t)
	f.must(f.create("created"))
	f.run("deleting")
	f.memory.OnDelete = fail
	_ = f.Shutdown(f.ctx, "deleting")
	f.must(f.Close())
	f.edit("created", record.Boot(), "other")
	f.edit("deleting", record.Boot(), "other")
	f.open()
	f.gone("created")
	f.gone("deleting")
}

// Directories without records are what a crash leaves of Create, or not ours.
func TestDirectoriesWithoutRecords(t *testing.T) {
	f := newFixture(t)
	f.must(f.Close())
	for _, dir := range []string{"empty", "begun", "foreign"} {
		f.must(os.Mkdir(f.file(dir, ""), 0o711))
	}
	f.write("begun", ".state.json.tmp", "{")
	f.write("begun", ".sandbox.json.tmp", "{")
	f.write("foreign", "precious", "")
	f.must(os.WriteFile(filepath.Join(f.dir, "file"), nil, 0o600))
	f.open()
	for _, dir := range []string{"empty", "begun"} {
		f.gone(dir)
	}
	if _, err := os.Stat(f.file("foreign", "precious")); err != nil {
		t.Error(err)
	}
	if _, err := f.Status(f.ctx, "foreign", false); !errdefs.IsNotFound(err) {
		t.Errorf("status: %v", err)
	}
}

// A stop that the daemon's death cut short is finished, or can be.
func TestRestartDuringStop(t *testing.T) {
	f := newFixture(t)
	f.run("finished")
	f.run("stubborn")
	f.memory.OnStop = fail
	for _, id := range []string{"finished", "stubborn"} {
		if err := f.Stop(f.ctx, id); !errors.Is(err, errHook) {
			t.Fatal(err)
		}
	}
	f.must(f.Close())
	stubborn := func(ctx context.Context) error { return nil }
	f.life(&sandboxtest.Memory{OnStop: func(ctx context.Context) error { return stubborn(ctx) }})
	f.open()
	f.want("finished", notReady)
	f.want("stubborn", notReady)
	for _, id := range []string{"finished", "stubborn"} {
		f.wait(id)
		f.must(f.Shutdown(f.ctx, id))
		f.gone(id)
	}

	f.run("one")
	f.memory.OnStop = fail
	_ = f.Stop(f.ctx, "one")
	f.restart() // and it fails again
	f.want("one", unknown)
	f.memory.OnStop = nil
	f.must(f.Stop(f.ctx, "one"))
	f.want("one", notReady)
	f.must(f.Shutdown(f.ctx, "one"))
	f.gone("one")
}

// A removal that the daemon's death cut short is finished, also when it fails
// at first.
func TestRestartDuringShutdown(t *testing.T) {
	f := newFixture(t)
	f.run("one")
	f.memory.OnDelete = fail
	if err := f.Shutdown(f.ctx, "one"); !errors.Is(err, errHook) {
		t.Fatal(err)
	}
	f.restart()
	f.want("one", unknown)
	f.memory.OnDelete = nil
	f.restart()
	f.gone("one")
}

// A sandbox that died together with the daemon has ended.
func TestDiedMeanwhile(t *testing.T) {
	f := newFixture(t)
	f.run("one")
	f.must(f.Close())
	f.must(os.Remove(filepath.Join(f.memory.World, "one")))
	f.open()
	f.wait("one")
	f.want("one", notReady)
	f.must(f.Shutdown(f.ctx, "one"))
	f.gone("one")
}

// The state directory may be reached by a symbolic link.
func TestLinkedDirectory(t *testing.T) {
	f := newFixture(t)
	f.must(f.Close())
	link := filepath.Join(t.TempDir(), "link")
	f.must(os.Symlink(f.dir, link))
	f.dir = link
	f.open()
	f.run("one")
	f.restart()
	f.want("one", ready)
	f.must(f.Shutdown(f.ctx, "one"))
	f.gone("one")
}

func TestNoDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := sandbox.New(t.Context(), sandbox.Config{Name: "memory", Dir: file, Backend: &sandboxtest.Memory{}})
	if err == nil || !strings.Contains(err.Error(), "sandboxer memory") {
		t.Errorf("error %v", err)
	}
}

// However many sandboxes hang in their recovery, the others are there at once,
// the daemon starts before long, and what comes late is welcome.
func TestSlowRecovery(t *testing.T) {
	const slow = 40
	dir, world := t.TempDir(), t.TempDir()
	ctx := namespaces.WithNamespace(t.Context(), "test")
	first := &fixture{T: t, ctx: ctx, dir: dir, memory: &sandboxtest.Memory{World: world}}
	first.open()
	ids := []string{"zz"} // recovered after all others
	for i := range slow {
		ids = append(ids, fmt.Sprintf("slow%d", i))
	}
	for _, id := range ids {
		first.run(id)
	}
	first.must(first.Close())

	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		ctx, cancel := context.WithCancel(namespaces.WithNamespace(t.Context(), "test"))
		defer cancel()
		backend := &slowRestore{Memory: &sandboxtest.Memory{World: world}, release: release}
		began := time.Now()
		c, err := sandbox.New(ctx, sandbox.Config{Name: "memory", Dir: dir, Backend: backend})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("the daemon starts after %v", took)
		}
		if s, err := c.Status(ctx, "zz", false); err != nil || s.State != ready {
			t.Errorf("the one that is not slow: %+v, %v", s, err)
		}
		s, err := c.Status(ctx, ids[1], true)
		if err != nil || s.State != unknown || !strings.Contains(s.Info["info"], `"recovering"`) {
			t.Errorf("a slow one: %+v, %v", s, err)
		}
		if _, err := c.Get(ids[1]); !errdefs.IsUnavailable(err) {
			t.Errorf("get a slow one: %v", err)
		}
		impatient, done := context.WithTimeout(ctx, time.Second)
		if err := c.Stop(impatient, ids[1]); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "recovering") {
			t.Errorf("stop a slow one: %v", err)
		}
		done()
		close(release)
		synctest.Wait()
		for _, id := range ids {
			if s, err := c.Status(ctx, id, false); err != nil || s.State != ready {
				t.Errorf("%s after all: %+v, %v", id, s, err)
			}
			if err := c.Shutdown(ctx, id); err != nil {
				t.Error(err)
			}
		}
	})
}

// slowRestore hangs when it is to restore a sandbox that is named so, and does
// not care about its context.
type slowRestore struct {
	*sandboxtest.Memory
	release chan struct{}
}

func (b *slowRestore) Restore(ctx context.Context, spec sandbox.Spec, saved json.RawMessage) (sandbox.Sandbox, error) {
	if strings.HasPrefix(spec.ID, "slow") {
		<-b.release
	}
	return b.Memory.Restore(context.WithoutCancel(ctx), spec, saved)
}
