package runc

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/host"
)

const (
	podMode  = runtime.NamespaceMode_POD
	ownMode  = runtime.NamespaceMode_CONTAINER
	nodeMode = runtime.NamespaceMode_NODE
)

func config(o *runtime.NamespaceOption) *runtime.PodSandboxConfig {
	return &runtime.PodSandboxConfig{
		Hostname: "mypod",
		Linux: &runtime.LinuxPodSandboxConfig{
			Sysctls:         map[string]string{"kernel.shm_rmid_forced": "1"},
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: o},
		},
	}
}

// see is a script that shows the namespaces of a container.
const see = "for n in net ipc uts pid user; do readlink /proc/self/ns/$n; done"

func (b *box) namespaces() map[string]uint64 {
	b.Helper()
	seen := map[string]uint64{}
	for line := range strings.Lines(b.sh(see)) {
		var number uint64
		kind, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		if _, err := fmt.Sscanf(rest, "[%d]", &number); err != nil {
			b.Errorf("%q: %v", line, err)
		}
		seen[kind] = number
	}
	return seen
}

func TestPrivatePod(t *testing.T) {
	n := newNode(t)
	net := n.netNS()
	b := n.start(config(&runtime.NamespaceOption{Pid: ownMode}), net)
	first, second := b.namespaces(), b.namespaces()
	if first["net"] != inode(t, net) {
		t.Error("the container is not in the pod's network namespace")
	}
	for _, kind := range []string{"net", "ipc", "uts"} {
		if first[kind] != second[kind] {
			t.Errorf("two containers have different %s namespaces", kind)
		}
		if host := inode(t, "/proc/self/ns/"+kind); first[kind] == host {
			t.Errorf("the container is in the host's %s namespace", kind)
		}
	}
	if first["pid"] == second["pid"] {
		t.Error("two containers share processes")
	}
	if out := b.sh("hostname; cat /etc/hostname /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start"); out != "mypod\nmypod\n1\n0\n" {
		t.Errorf("inside: %q", out)
	}
	b.sh("touch /dev/shm/left")
	b.sh("stat /dev/shm/left /etc/resolv.conf /etc/hosts")
	if pid := b.Pid(); pid != n.worker.Pids()[0] {
		t.Errorf("pid %d, want the worker's %d", pid, n.worker.Pids()[0])
	}
	if b.over() {
		t.Error("it is over")
	}
}

func TestPodOnTheHost(t *testing.T) {
	n := newNode(t)
	c := config(&runtime.NamespaceOption{Network: nodeMode, Ipc: nodeMode, Pid: nodeMode})
	c.Linux.Sysctls = nil
	b := n.start(c, "")
	b.node.pods++
	k := b.run("c", command(b, true, "sh", "-c", see))
	status, out := k.wait()
	var want string
	for _, kind := range []string{"net", "ipc", "uts", "pid", "user"} {
		link, err := os.Readlink("/proc/self/ns/" + kind)
		must(t, err)
		want += link + "\n"
	}
	if status != 0 || out != want {
		t.Errorf("status %d, in %q, want %q", status, out, want)
	}
	if ok, err := host.IsPinned(b.spec.Dir, specs.IPCNamespace); ok || err != nil {
		t.Errorf("it pinned an ipc namespace: %v", err)
	}
}

func TestSharedProcesses(t *testing.T) {
	n := newNode(t)
	b := n.start(config(&runtime.NamespaceOption{Network: nodeMode}), "")
	b.run("sleeper", command(b, true, "sleep", "1000"))
	k := b.run("viewer", command(b, true, "sh", "-c", "ps; cat /proc/1/cmdline"))
	status, out := k.wait()
	if status != 0 || !strings.Contains(out, "sleep 1000") || !strings.Contains(out, "pause") {
		t.Errorf("status %d: %s", status, out)
	}
	if b.Pid() == n.worker.Pids()[0] {
		t.Error("the worker stands for a pod that has an init")
	}
	n.kill(int(b.Pid()))
	ctx, cancel := n.ctx()
	defer cancel()
	if exit, err := b.Wait(ctx); err != nil || exit.Status != 137 {
		t.Errorf("its init was killed: %+v, %v", exit, err)
	}
	late := command(b, true, "ps")
	late.ID, late.Rootfs = "late", b.image()
	if _, err := b.Prepare(ctx, late); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "init") {
		t.Errorf("a container after that: %v", err)
	}
}

// A container may want what its pod did not ask for.
func TestProcessesSharedLate(t *testing.T) {
	n := newNode(t)
	b := n.start(config(&runtime.NamespaceOption{Network: nodeMode, Pid: ownMode}), "")
	worker := b.Pid()
	one := command(b, true, "sleep", "1000")
	b.run("sleeper", one)
	two := command(b, true, "ps")
	if b.Pid() == worker {
		t.Error("the pod has no init")
	}
	three := command(b, true, "ps")
	for i := range three.Spec.Linux.Namespaces {
		if ns := &three.Spec.Linux.Namespaces[i]; ns.Type == specs.PIDNamespace {
			ns.Path = fmt.Sprintf("/proc/%d/ns/pid", worker) // made before the init was
		}
	}
	for id, c := range map[string]*sandbox.Container{"two": two, "three": three} {
		if status, out := b.run(id, c).wait(); status != 0 || !strings.Contains(out, "sleep 1000") {
			t.Errorf("%s: status %d: %s", id, status, out)
		}
	}
}

func TestStopKillsEverything(t *testing.T) {
	n := newNode(t)
	for name, o := range map[string]*runtime.NamespaceOption{
		"own processes":    {Network: nodeMode, Pid: ownMode},
		"shared processes": {Network: nodeMode, Pid: podMode},
	} {
		t.Run(name, func(t *testing.T) {
			b := n.start(config(o), "")
			b.run("a", command(b, o.Pid == podMode, "sleep", "1000"))
			b.run("b", command(b, o.Pid == podMode, "sh", "-c", "sleep 1000 & sleep 1000"))
			ctx, cancel := n.ctx()
			defer cancel()
			for range 2 {
				must(t, b.Stop(ctx))
			}
			if _, err := b.Wait(ctx); err != nil {
				t.Error(err)
			}
			if left, _ := filepath.Glob("/sys/fs/cgroup/*" + b.parent + "/" + b.id); len(left) > 0 {
				t.Errorf("the init's cgroup is left: %q", left)
			}
			for _, group := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/pids"} {
				b, err := os.ReadFile(group + b.parent + "/a/cgroup.procs")
				if err == nil && len(b) > 0 {
					t.Errorf("they run: %s", b)
				}
			}
			must(t, b.Delete(ctx))
		})
	}
}

func TestRestart(t *testing.T) {
	n := newNode(t)
	plain := n.start(config(&runtime.NamespaceOption{Network: nodeMode, Pid: ownMode}), "")
	shared := n.start(config(&runtime.NamespaceOption{Network: nodeMode}), "")
	stopped := n.start(config(&runtime.NamespaceOption{Network: nodeMode, Pid: ownMode}), "")
	made := n.create(n.spec(config(&runtime.NamespaceOption{Network: nodeMode, Pid: ownMode}), ""))
	ctx, cancel := n.ctx()
	defer cancel()
	must(t, stopped.Stop(ctx))
	must(t, stopped.spec.Saved(ctx))
	init := shared.Pid()
	before := plain.namespaces()

	must(t, n.worker.Close())
	n.boot()
	for _, b := range []*box{plain, shared, stopped, made} {
		b.restore()
	}
	if plain.over() || shared.over() {
		t.Error("running pods are over")
	}
	if !stopped.over() || !made.over() {
		t.Error("a pod that did not run runs")
	}
	if shared.Pid() != init {
		t.Errorf("init %d, was %d", shared.Pid(), init)
	}
	if after := plain.namespaces(); after["ipc"] != before["ipc"] || after["uts"] != before["uts"] {
		t.Errorf("namespaces %v, were %v", after, before)
	}
	k := shared.run("late", command(shared, true, "ps"))
	if status, out := k.wait(); status != 0 || !strings.Contains(out, "pause") {
		t.Errorf("status %d: %s", status, out)
	}

	// Once more, and the init dies meanwhile.
	must(t, shared.spec.Saved(ctx))
	must(t, n.worker.Close())
	n.kill(int(init))
	n.boot()
	plain.restore()
	shared.restore()
	if _, err := shared.Wait(ctx); err != nil {
		t.Error(err)
	}
	if plain.over() {
		t.Error("another pod is over too")
	}
}

func TestRestoreAfterAReboot(t *testing.T) {
	n := newNode(t)
	b := n.start(config(&runtime.NamespaceOption{Network: nodeMode, Pid: ownMode}), "")
	b.saved = []byte(strings.Replace(string(b.saved), `"boot":"`, `"boot":"former`, 1))
	b.restore()
	if !b.over() {
		t.Errorf("a pod of another boot runs: %s", b.saved)
	}
}

func TestPodWithoutItsNamespacesIsOver(t *testing.T) {
	n := newNode(t)
	b := n.start(config(&runtime.NamespaceOption{Network: nodeMode, Pid: ownMode}), "")
	must(t, host.Unpin(b.spec.Dir))
	b.restore()
	if !b.over() {
		t.Error("it runs without its ipc namespace")
	}
}

func TestFailedStartLeavesNothing(t *testing.T) {
	n := newNode(t)
	for name, o := range map[string]*runtime.NamespaceOption{
		"thread": {Network: nodeMode, Pid: ownMode},
		"init":   {Network: nodeMode, UsernsOptions: user(100000)},
	} {
		t.Run(name, func(t *testing.T) {
			c := config(o)
			c.Linux.Sysctls = map[string]string{"kernel.sem": "nonsense"}
			b := n.create(n.spec(c, ""))
			ctx, cancel := n.ctx()
			defer cancel()
			if err := b.Start(ctx); err == nil || !strings.Contains(err.Error(), "kernel.sem") && !strings.Contains(err.Error(), "kernel/sem") {
				t.Errorf("got %v", err)
			}
			mounts, err := os.ReadFile("/proc/self/mountinfo")
			must(t, err)
			if strings.Contains(string(mounts), b.spec.Dir+"/") {
				t.Error("it left mounts")
			}
		})
	}
}

func TestPrepareRefuses(t *testing.T) {
	n := newNode(t)
	b := n.start(config(&runtime.NamespaceOption{Network: nodeMode, Pid: ownMode}), "")
	for _, test := range []struct {
		name   string
		change func(*sandbox.Container)
		want   string
	}{
		{"no process", func(c *sandbox.Container) { c.Spec.Process = nil }, "process"},
		{"no rootfs", func(c *sandbox.Container) { c.Rootfs = nil }, "rootfs"},
		{"no spec", func(c *sandbox.Container) { c.Spec = nil }, "spec"},
		{"terminal", func(c *sandbox.Container) { c.IO.Terminal = true }, "terminal"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := command(b, false, "sh")
			c.ID, c.Rootfs = "c", b.image()
			test.change(c)
			_, err := b.Prepare(t.Context(), c)
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v", err)
			}
		})
	}
	if ids, err := b.containers(); err != nil || len(ids) > 0 {
		t.Errorf("left behind: %q, %v", ids, err)
	}
}

func TestStats(t *testing.T) {
	n := newNode(t)
	b := n.start(config(&runtime.NamespaceOption{Network: nodeMode, Pid: ownMode}), "")
	b.run("c", command(b, false, "sleep", "1000"))
	m, err := b.Stats(context.Background())
	if err != nil || len(m.GetValue()) == 0 {
		t.Errorf("got %v, %v", m, err)
	}
}

func TestOCI(t *testing.T) {
	n := newNode(t)
	b := n.start(config(&runtime.NamespaceOption{Pid: ownMode}), n.netNS())
	s := b.OCI()
	if want := filepath.Join(b.parent, b.spec.ID); s.Linux.CgroupsPath != want {
		t.Errorf("cgroup %s, want %s", s.Linux.CgroupsPath, want)
	}
	got := map[specs.LinuxNamespaceType]string{}
	for _, ns := range s.Linux.Namespaces {
		got[ns.Type] = ns.Path
	}
	if got[specs.NetworkNamespace] != b.spec.NetNS || got[specs.IPCNamespace] != host.Pinned(b.spec.Dir, specs.IPCNamespace) || len(got) != 3 {
		t.Errorf("namespaces %v", got)
	}
}
