package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// TestSandboxerThatIsLeftOut restarts the daemon with a configuration that
// lets the sandboxer not start: its pods live on, and are as they were once
// the configuration is mended.
func TestSandboxerThatIsLeftOut(t *testing.T) {
	b := newBed(t, bed.Options{})
	n := on(t, b, bed.Runc)
	p := n.pod(nil)
	c := n.run(p, nil)
	pid := hostPid(n, c)
	before, err := c.Status(n.ctx)
	n.must(err)

	config := filepath.Join(b.Dir, "config.toml")
	good, err := os.ReadFile(config)
	n.must(err)
	bad := string(good) + "\n[plugins.'io.containerd.kuasar.v1.worker']\npath = 'kuasar-task'\n"
	n.must(b.Kill())
	n.must(os.WriteFile(config, []byte(bad), 0o600))
	mark := b.Mark()
	n.must(b.Start(n.ctx))
	contains(t, "log", b.Log(mark), `path = \"kuasar-task\" is not absolute`, c.ID)
	works(on(t, b, bed.Stock))
	if status, err := c.Status(n.ctx); err != nil || status.State != runtime.ContainerState_CONTAINER_UNKNOWN {
		t.Errorf("the container without its sandboxer: %v, %v", status, err)
	}
	if err := p.Stop(n.ctx); err == nil {
		t.Error("the pod was stopped without its sandboxer")
	}

	n.must(b.Kill())
	n.must(os.WriteFile(config, good, 0o600))
	n.must(b.Start(n.ctx))
	equal(t, "exec", n.exec(c, "echo ok"), "ok")
	equal(t, "pid", hostPid(n, c), pid)
	after, err := c.Status(n.ctx)
	n.must(err)
	equal(t, "status", after.String(), before.String())
	status, err := p.Status(n.ctx)
	n.must(err)
	equal(t, "state of the pod", status.State, runtime.PodSandboxState_SANDBOX_READY)
}

// quarantined restarts the daemon with a pod's record damaged, beside a pod
// that is well, and returns the record's path and its good content.
func (n *fixture) quarantined(p *bed.Pod) (path string, good []byte) {
	n.t.Helper()
	path = filepath.Join(n.dir(p), "sandbox.json")
	good, err := os.ReadFile(path)
	n.must(err)
	n.must(n.Kill())
	n.must(os.WriteFile(path, good[:len(good)/2], 0o600))
	n.must(n.Start(n.ctx))
	if err := p.Stop(n.ctx); err == nil {
		n.t.Error("the damaged pod was stopped")
	}
	return path, good
}

// dir is a sandbox's own directory.
func (n *fixture) dir(p *bed.Pod) string { return filepath.Join(n.State(), "kuasar", "runc", p.ID) }

// removed holds that a pod and its container can be stopped and removed, and
// that another is as it was.
func (n *fixture) removed(p *bed.Pod, other *bed.Container) {
	n.t.Helper()
	n.must(p.Remove(n.ctx))
	list, err := n.Runtime.ListContainers(n.ctx, &runtime.ListContainersRequest{
		Filter: &runtime.ContainerFilter{PodSandboxId: p.ID},
	})
	n.must(err)
	equal(n.t, "containers of the removed pod", len(list.Containers), 0)
	equal(n.t, "exec in the other pod", n.exec(other, "echo ok"), "ok")
}

// TestStopAfterRepair stops a quarantined pod whose record was repaired,
// without a restart.
func TestStopAfterRepair(t *testing.T) {
	n := on(t, newBed(t, bed.Options{}), bed.Runc)
	victim, other := n.pod(nil), n.run(n.pod(nil), nil)
	c := n.run(victim, nil)
	pid := hostPid(n, c)
	path, good := n.quarantined(victim)
	n.must(syscall.Kill(pid, 0))
	n.must(os.WriteFile(path, good, 0o600))
	n.removed(victim, other)
	if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
		t.Errorf("the container's process: %v", err)
	}
}

// TestGiveUp removes a quarantined pod as docs/operate.md says.
func TestGiveUp(t *testing.T) {
	n := on(t, newBed(t, bed.Options{}), bed.Runc)
	victim, other := n.pod(nil), n.run(n.pod(nil), nil)
	c := n.run(victim, nil)
	pid := hostPid(n, c)
	n.quarantined(victim)

	dir, attic := n.dir(victim), filepath.Join(n.Dir, "attic")
	unmountBelow(n, dir)
	n.must(os.Rename(dir, attic))
	if err := victim.Stop(n.ctx); err == nil {
		t.Error("the pod was stopped while its container runs")
	}
	n.must(syscall.Kill(pid, syscall.SIGKILL))
	n.must(bed.AwaitExit(n.ctx, pid))
	n.removed(victim, other)
}

// unmountBelow unmounts what is mounted below a directory, the last first.
func unmountBelow(n *fixture, dir string) {
	n.t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	n.must(err)
	for _, m := range slices.Backward(mounts) {
		n.must(unix.Unmount(m.Mountpoint, unix.MNT_DETACH))
	}
}
