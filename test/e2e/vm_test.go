package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
	"github.com/containerd-kuasar/containerd-kuasar/test/images"
)

// vm is a bed for pods in virtual machines.
func vm(t *testing.T) *fixture {
	t.Helper()
	bed.RequireVMM(t)
	return on(t, newBed(t, bed.Options{}), bed.VMM)
}

// A pod in a virtual machine is like any other to people.
func TestCrictlVM(t *testing.T) { crictlLife(t, vm(t)) }

// A machine without a container: it starts, costs something, and goes.
func TestPodVM(t *testing.T) {
	n := vm(t)
	p := n.pod(nil)
	status, err := p.Status(n.ctx)
	n.must(err)
	equal(t, "state", status.State.String(), "SANDBOX_READY")
	n.must(n.Stop(n.ctx))
	n.must(n.Start(n.ctx))
	status, err = p.Status(n.ctx)
	n.must(err)
	equal(t, "state after a restart of the daemon", status.State.String(), "SANDBOX_READY")
	n.must(p.Remove(n.ctx))
}

// A root file system of a snapshotter with block devices is a disk of the
// guest's, which the host has not mounted.
func TestBlockVM(t *testing.T) {
	bed.RequireVMM(t)
	n := on(t, newBed(t, bed.Options{Blocks: true}), bed.VMMBlock)
	crictlLife(t, n)

	p := n.pod(nil)
	c := n.run(p, nil)
	readonly := n.run(p, func(c *runtime.ContainerConfig) { c.Linux.SecurityContext.ReadonlyRootfs = true })
	contains(t, "root", n.exec(c, "grep ' / ' /proc/mounts"), "/dev/vd", " ext4 rw")
	contains(t, "root that is read only", n.exec(readonly, "grep ' / ' /proc/mounts; echo x 2>&1 >/x || true"), "/dev/vd", " ext4 ro", "Read-only file system")
	n.exec(c, "echo kept >/file; sync")
	n.must(n.Kill())
	n.must(n.Start(n.ctx))
	equal(t, "file after a restart of the daemon", n.exec(c, "cat /file"), "kept")
	n.must(c.Stop(n.ctx, 0))
	n.must(c.Remove(n.ctx))
	contains(t, "root of the next", n.exec(n.run(p, nil), "grep ' / ' /proc/mounts"), "/dev/vd")
	n.blockVolume(p)
	mounts, err := os.ReadFile("/proc/self/mounts")
	n.must(err)
	if strings.Contains(string(mounts), "/dev/loop") {
		t.Errorf("the host has mounted it, too:\n%s", mounts)
	}
}

// blockVolume gives a container a block device of the host's.
func (n *fixture) blockVolume(p *bed.Pod) {
	n.t.Helper()
	image := filepath.Join(n.t.TempDir(), "image")
	n.must(os.WriteFile(image, append([]byte("of the host\n"), make([]byte, 1<<20)...), 0o600))
	loop, err := mount.AttachLoopDevice(image)
	n.must(err)
	defer func() { n.must(mount.DetachLoopDevice(loop)) }()
	c := n.run(p, func(c *runtime.ContainerConfig) {
		c.Devices = []*runtime.Device{{HostPath: loop, ContainerPath: "/dev/volume", Permissions: "rwm"}}
	})
	equal(n.t, "block volume", n.exec(c, "head -n1 /dev/volume"), "of the host")
	n.exec(c, "echo of the guest | dd of=/dev/volume conv=notrunc,fsync 2>/dev/null")
	equal(n.t, "block volume on the host", strings.SplitN(text(n.t, image), "\n", 2)[0], "of the guest")
	n.must(c.Stop(n.ctx, 0))
	n.must(c.Remove(n.ctx))
}

// Containers that share the pod's pid namespace are beside the machine's first
// process. They do not end it, and it takes care of their orphans.
func TestSharedPidVM(t *testing.T) {
	n := vm(t)
	p := n.pod(func(c *runtime.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
		c.Linux.SecurityContext.Privileged = true
	})
	first, second := n.run(p, nil), n.run(p, nil)
	contains(t, "processes", n.exec(first, "ps"), "kuasar-task", "sleep")
	privileged := n.run(p, func(c *runtime.ContainerConfig) { c.Linux.SecurityContext.Privileged = true })
	equal(t, "the agent's binary", n.exec(privileged, "readlink /proc/1/exe"), "/memfd:kuasar-task (deleted)")
	n.exec(first, "for s in HUP INT QUIT TERM ABRT ILL TRAP BUS FPE SEGV SYS KILL STOP; do kill -$s 1; done")
	equal(t, "exec in the other container", n.exec(second, "echo ok"), "ok")
	n.exec(first, "(sleep 0.2; exit 3) & exit 0")
	n.exec(first, "while pgrep -f '^sleep 0.2'; do sleep 0.1; done")
	equal(t, "zombies", n.exec(first, "grep -l '^State:.Z' /proc/[0-9]*/status; true"), "")
	equal(t, "signals that the container's process ignores", field(n.exec(first, "cat /proc/$(pgrep sleep | head -n1)/status"), "SigIgn"), "0000000000000000")

	out := n.ctr("run", "--rm", "--rlimit-nofile", "1000:2000", "--sandbox", p.ID, images.Busybox, "limited", "sh", "-c", "ulimit -Sn; ulimit -Hn")
	equal(t, "limits of files", out, "1000\n2000")
}

// What a pod asks for and no machine has is refused, and said with the remedy.
func TestBadVM(t *testing.T) {
	n := vm(t)
	for says, change := range map[string]func(*runtime.PodSandboxConfig){
		"the operator decides": func(c *runtime.PodSandboxConfig) {
			c.Annotations = map[string]string{"vmm.kuasar.io/memory": "512"}
		},
		"host's network": func(c *runtime.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
		},
		"beyond what a machine has": func(c *runtime.PodSandboxConfig) {
			c.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 1 << 50}
		},
	} {
		if _, err := n.RunPod(n.ctx, n.handler, change); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q is not in %v", says, err)
		}
	}
}

// Clones of a machine have nothing in common that is to be a pod's own. They are
// pods like others, also to the next daemon, which clones the same template.
func TestClonesVM(t *testing.T) {
	bed.RequireVMM(t)
	n := on(t, newBed(t, bed.Options{}), bed.VMMClone)
	n.must(n.Templated(n.ctx))
	crictlLife(t, n)
	start := func() (*bed.Container, map[string]string) {
		p := n.pod(nil)
		if n.sandboxes()[p.ID].Template == "" {
			t.Fatal("it is no clone:\n" + n.Log(0))
		}
		c := n.run(p, nil)
		return c, n.own(c)
	}
	one, its := start()
	_, others := start()
	n.must(n.Kill())
	n.must(n.Start(n.ctx))
	_, next := start()
	for what, value := range its {
		if value == "" || value == others[what] || value == next[what] || others[what] == next[what] {
			t.Errorf("%s of the clones: %q, %q, %q", what, value, others[what], next[what])
		}
	}
	equal(t, "what is the first one's own after a restart of the daemon", n.own(one)["boot id"], its["boot id"])
	if log := n.Log(0); strings.Contains(log, "pods boot, which is slower") || strings.Count(log, "template made") != 1 {
		t.Errorf("the log:\n%s", log)
	}
}

// own is what a container finds that is its machine's own, by name.
func (n *fixture) own(c *bed.Container) map[string]string {
	n.t.Helper()
	all := map[string]string{}
	for what, script := range map[string]string{
		"boot id":            "cat /proc/sys/kernel/random/boot_id",
		"uuid":               "cat /proc/sys/kernel/random/uuid",
		"random bytes":       "head -c 16 /dev/urandom | md5sum",
		"random addresses":   "grep stack /proc/self/maps",
		"hostname":           "hostname",
		"MAC":                "cat /sys/class/net/eth0/address",
		"address":            "ip -4 addr show eth0 | grep inet",
		"link-local address": "grep ^fe80 /proc/net/if_inet6",
	} {
		all[what] = n.exec(c, script)
	}
	now, err := strconv.ParseInt(n.exec(c, "date +%s"), 10, 64)
	n.must(err)
	if ago := time.Since(time.Unix(now, 0)); ago < -time.Second || ago > 5*time.Second {
		n.t.Errorf("the clock is behind by %v", ago)
	}
	return all
}

// A template that nobody can clone any more fails no pod, and is not tried with
// the next.
func TestBadTemplateVM(t *testing.T) {
	bed.RequireVMM(t)
	n := on(t, newBed(t, bed.Options{}), bed.VMMClone)
	n.must(n.Templated(n.ctx))
	states, err := filepath.Glob(filepath.Join(n.Dir, "s", "kuasar", "templates", "*", "state"))
	n.must(err)
	equal(t, "templates", len(states), 1)
	f, err := os.OpenFile(states[0], os.O_WRONLY, 0)
	n.must(err)
	_, err = f.WriteAt([]byte("damage"), 1000)
	n.must(errors.Join(err, f.Close()))
	for range 2 {
		p := n.pod(nil)
		equal(t, "template of the pod", n.sandboxes()[p.ID].Template, "")
		equal(t, "exec", n.exec(n.run(p, nil), "echo ok"), "ok")
	}
	equal(t, "warnings", strings.Count(n.Log(0), "pods boot, which is slower"), 1)
	contains(t, "log", n.Log(0), "has been changed")
}
