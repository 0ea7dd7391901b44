package vmm_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/vmm"
	"github.com/containerd-kuasar/containerd-kuasar/vmm/vmmtest"
)

// doomedPool is doomedDaemon for a daemon that has a pool.
const doomedPool = "vmm-test-pool"

func pooled(o *vmm.Options) { o.Pool = 2 }

// fill has a pod make the template, and returns when the pool is full.
func (c *cloning) fill() error {
	if err := c.run("first"); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	if err := c.templates.Settled(c.ctx); err != nil {
		return err
	}
	if err := c.templates.Filled(c.ctx); err != nil {
		return err
	}
	return c.remove("first")
}

// doomPool lives until a failpoint.
func doomPool(dir string) int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := newCloning(ctx, dir, vmmtest.Fake{}, pooled)
	if err == nil {
		err = c.fill()
	}
	if err == nil {
		err = c.run("one")
	}
	if err == nil {
		err = c.templates.Close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// shop is a daemon with a pool, in a directory of its own.
type shop struct {
	*testing.T
	*cloning
	dir string
}

func newShop(t *testing.T, d vmmtest.Fake) *shop {
	root(t)
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	s := &shop{T: t, dir: dir}
	s.open(d)
	t.Cleanup(func() {
		s.shut()
		s.must(os.RemoveAll(dir))
		vmmtest.Leaks(t)
	})
	return s
}

func (s *shop) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *shop) open(d vmmtest.Fake) {
	s.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	s.Cleanup(cancel)
	var err error
	s.cloning, err = newCloning(ctx, s.dir, d, pooled)
	s.must(err)
}

// shut ends the daemon. Nothing is left of the pool.
func (s *shop) shut() {
	s.Helper()
	s.close()
	if _, err := os.Stat(filepath.Join(s.dir, "pool")); !errors.Is(err, fs.ErrNotExist) {
		s.Errorf("the pool's directory is left: %v", err)
	}
	if left := s.templates.PoolGroups(); len(left) > 0 {
		s.Errorf("cgroups are left: %q", left)
	}
}

// spares are the processes in the pool.
func (s *shop) spares() []int {
	s.Helper()
	var pids []int
	for _, p := range machines(s.T, filepath.Join(s.dir, "pool")) {
		pids = append(pids, p.Pid)
	}
	return pids
}

func (s *shop) pid(id string) int {
	s.Helper()
	status, err := s.Status(s.ctx, id, false)
	s.must(err)
	return int(status.Pid)
}

// gone fails the test if a process runs.
func gone(t *testing.T, p vmm.Process) {
	t.Helper()
	f, err := pidfd.Open(p.Pid, p.Start)
	if errdefs.IsNotFound(err) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if running, err := pidfd.Running(f); running || err != nil {
		t.Errorf("machine %d is left: %v", p.Pid, err)
	}
}

// TestPool takes machines from the pool, which is filled again. A taken one is a
// pod like any other, also for the next daemon.
func TestPool(t *testing.T) {
	s := newShop(t, vmmtest.Fake{})
	s.must(s.fill())
	for _, id := range []string{"one", "two"} {
		ready := s.spares()
		if len(ready) != 2 {
			t.Fatalf("%d machines are ready", len(ready))
		}
		s.must(s.run(id))
		if pid := s.pid(id); !slices.Contains(ready, pid) {
			t.Errorf("pod %s has process %d, ready were %d", id, pid, ready)
		}
		groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", s.pid(id)))
		if err != nil || strings.Count(string(groups), vmmtest.Group+"/"+id+"\n") != strings.Count(string(groups), "\n") {
			t.Errorf("cgroups: %s, %v", groups, err)
		}
		nice, err := unix.Getpriority(unix.PRIO_PROCESS, s.pid(id))
		if err != nil || nice != 20 { // the system call's way to say 0
			t.Errorf("priority %d, %v", nice, err)
		}
		s.must(s.templates.Filled(s.ctx))
	}
	ready := machines(t, filepath.Join(s.dir, "pool"))
	s.shut()
	for _, p := range ready {
		gone(t, p)
	}
	s.open(vmmtest.Fake{})
	for _, id := range []string{"one", "two"} {
		box, err := s.Get(id)
		s.must(err)
		_, err = box.Agent(s.ctx)
		s.must(err)
		s.must(s.remove(id))
	}
}

// A pod that sets an option or has a limit has another machine, or may.
func TestPoolIsForUsualPods(t *testing.T) {
	s := newShop(t, vmmtest.Fake{})
	s.must(s.fill())
	ready := s.spares()
	config := &runtime.PodSandboxConfig{Linux: &runtime.LinuxPodSandboxConfig{
		CgroupParent: vmmtest.Group, Resources: &runtime.LinuxContainerResources{MemoryLimitInBytes: 64 << 20},
	}}
	s.must(s.Create(s.ctx, core.Sandbox{ID: "limited", Labels: map[string]string{"name": "limited"}}, core.WithOptions(config)))
	_, err := s.Start(s.ctx, "limited")
	s.must(err)
	if slices.Contains(ready, s.pid("limited")) {
		t.Error("it has a machine of the pool")
	}
	s.must(s.remove("limited"))
	s.must(s.templates.Settled(s.ctx))
}

// Machines that end in the pool are replaced, and no pod gets one.
func TestPoolMachineEnds(t *testing.T) {
	s := newShop(t, vmmtest.Fake{})
	s.must(s.fill())
	for _, p := range s.spares() {
		s.must(unix.Kill(p, unix.SIGKILL))
	}
	s.must(s.run("one"))
	s.must(s.remove("one"))
}

// A pool that cannot be filled fails no pod.
func TestPoolCannotBeFilled(t *testing.T) {
	s := newShop(t, vmmtest.Fake{Stillborn: true})
	s.must(s.run("one"))
	s.must(s.templates.Settled(s.ctx))
	for _, id := range []string{"two", "three"} {
		s.must(s.run(id))
	}
	for _, id := range []string{"one", "two", "three"} {
		s.must(s.remove(id))
	}
}

// A pod whose machine from the pool does not go on boots.
func TestPoolMachineIsSterile(t *testing.T) {
	s := newShop(t, vmmtest.Fake{Sterile: true})
	s.must(s.fill())
	ready := s.spares()
	s.must(s.run("one"))
	if slices.Contains(ready, s.pid("one")) {
		t.Error("it has a machine of the pool")
	}
	s.must(s.remove("one"))
}

// When memory is short the pool is given back, and not filled.
func TestPoolIsGivenBack(t *testing.T) {
	s := newShop(t, vmmtest.Fake{})
	s.must(s.fill())
	ready := machines(t, filepath.Join(s.dir, "pool"))
	s.must(s.templates.Squeeze(s.ctx))
	for _, p := range ready {
		gone(t, p)
	}
	if left := s.spares(); len(left) > 0 {
		t.Errorf("processes %d are left", left)
	}
	s.must(s.run("one"))
	if slices.Contains(s.spares(), s.pid("one")) {
		t.Error("it has a machine of the pool")
	}
	s.must(s.remove("one"))
}

// TestKilledWithPool kills the daemon while it makes a machine for the pool, gives
// one to a pod, and gives one back. The next daemon leaves nothing of that.
func TestKilledWithPool(t *testing.T) {
	root(t)
	points := slices.DeleteFunc(failpoint.Names(), func(name string) bool { return !strings.HasPrefix(name, "vmm/pool/") })
	if len(points) < 8 {
		t.Fatalf("points %q", points)
	}
	for _, point := range points {
		t.Run(point, func(t *testing.T) { poolKilledAt(t, point) })
	}
}

func poolKilledAt(t *testing.T, point string) {
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	s := &shop{T: t, dir: dir}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], doomedPool, dir)
	cmd.Env = append(os.Environ(), failpoint.Env+"="+point)
	out, _ := cmd.CombinedOutput()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() {
		t.Errorf("nothing died at %s: is it on no path? %s", point, out)
	}
	left := machines(t, filepath.Join(dir, "pool"))
	left = append(left, machines(t, filepath.Join(dir, "boxes", "one"))...)

	s.open(vmmtest.Fake{})
	for _, p := range left {
		gone(t, p)
	}
	for _, id := range []string{"one", "first"} {
		if _, err := s.Status(s.ctx, id, false); err == nil {
			s.must(s.remove(id))
		}
	}
	if found, err := filepath.Glob(filepath.Join(dir, "pool", "*")); err != nil || len(found) > 0 {
		t.Errorf("there are %q, %v", found, err)
	}
	s.must(s.fill())
	ready := s.spares()
	s.must(s.run("one"))
	if !slices.Contains(ready, s.pid("one")) {
		t.Error("it has no machine of the pool")
	}
	s.must(s.remove("one"))
	s.shut()
	s.must(os.RemoveAll(dir))
	vmmtest.Leaks(t)
}
