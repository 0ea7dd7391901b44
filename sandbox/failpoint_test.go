package sandbox_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/sandboxtest"
)

// child is "directory world", of the process that is to die.
const child = "SANDBOX_TEST_CHILD"

// TestMain is that process, if it is told where.
func TestMain(m *testing.M) {
	where := os.Getenv(child)
	if where == "" {
		os.Exit(m.Run())
	}
	dir, world, _ := strings.Cut(where, " ")
	if err := live(dir, &sandboxtest.Memory{World: world}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// live is a daemon's life with a sandbox's in it.
func live(dir string, backend sandbox.Backend) error {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), "test"), time.Minute)
	defer cancel()
	c, err := sandbox.New(ctx, sandbox.Config{Name: "memory", Dir: dir, Backend: backend})
	if err != nil {
		return err
	}
	err = c.Create(ctx, core.Sandbox{ID: "one", Labels: map[string]string{"name": "n"}})
	if err == nil {
		_, err = c.Start(ctx, "one")
	}
	if err != nil && !errdefs.IsAlreadyExists(err) { // a former daemon's
		return err
	}
	if err := c.Stop(ctx, "one"); err != nil {
		return err
	}
	return c.Shutdown(ctx, "one")
}

// dies runs that life in a process of its own and says whether it died.
func (f *fixture) dies(at string) bool {
	f.Helper()
	cmd := exec.CommandContext(f.ctx, os.Args[0])
	cmd.Env = append(os.Environ(), child+"="+f.dir+" "+f.memory.World, failpoint.Env+"="+at)
	out, err := cmd.CombinedOutput()
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() && status.ExitStatus() != 0 {
		f.Fatalf("%v: %s", err, out)
	}
	return status.Signaled()
}

// again are the points of which each is right after another kind of effect of
// a recovery.
var again = []string{"", "sandbox/recover/restored", "sandbox/stop/stopped", "sandbox/delete/deleted", "sandbox/delete/record"}

// TestKilledAtFailpoint kills the daemon at each point, and then the next one
// in its recovery. The third finds a sandbox that has not noticed, and of the
// other what it can remove.
func TestKilledAtFailpoint(t *testing.T) {
	points := slices.DeleteFunc(failpoint.Names(), func(name string) bool { return !strings.HasPrefix(name, "sandbox/") })
	if len(points) < 10 {
		t.Fatalf("points %q", points)
	}
	for _, first := range points {
		for _, second := range again {
			t.Run(first+","+second, func(t *testing.T) {
				f := newFixture(t)
				f.run("bystander")
				before := f.status("bystander")
				f.must(f.Close())
				if !f.dies(first) {
					t.Errorf("nothing died at %s: is it on no path?", first)
				}
				if second != "" {
					f.dies(second)
				}
				f.open()
				if s := f.status("bystander"); s.State != ready || !s.CreatedAt.Equal(before.CreatedAt) {
					t.Errorf("the other sandbox: %+v, want %+v", s, before)
				}
				f.lives("bystander")
				if s, err := f.Status(f.ctx, "one", false); err == nil && s.State != notReady && s.State != ready {
					t.Errorf("status %+v", s)
				} else if err != nil && !errdefs.IsNotFound(err) {
					t.Error(err)
				}
				f.must(f.Stop(f.ctx, "one"))
				f.must(f.Shutdown(f.ctx, "one"))
				f.gone("one")
				f.run("one") // nothing of it is in the way
				f.must(f.Shutdown(f.ctx, "one"))
				f.must(f.Shutdown(f.ctx, "bystander"))
				f.gone("bystander")
			})
		}
	}
}
