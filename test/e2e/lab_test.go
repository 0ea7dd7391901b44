package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// TestLab has what a kernel and cgroups of another version or of systemd can
// change, on one daemon: a bed takes long in the lab.
func TestLab(t *testing.T) {
	if os.Getenv(bed.Lab) == "" {
		t.Skip("needs the lab: make lab")
	}
	b := newModuleBed(t)
	const (
		never   = iota // in virtual machines
		patient        // there, but not in short mode: each takes most of a minute
		always
	)
	for _, part := range []struct {
		name     string
		test     func(*testing.T, *fixture)
		machines int
	}{
		{"life", crictlLife, always},
		{"stats", stats, patient},
		{"update", update, patient},
		{"unified", unified, patient},
		{"pause", pause, patient},
		{"OOM", kill, always},
		{"restart", restart, always},
		{"huge pages", hugePages, never},
		{"AppArmor", appArmor, never},
		{"checkpoint", checkpoint, never},
	} {
		for _, handler := range handlers() {
			if handler == bed.VMM && (part.machines == never || part.machines == patient && testing.Short()) {
				continue
			}
			t.Run(part.name+"/"+handler, func(t *testing.T) { part.test(t, on(t, b, handler)) })
		}
	}
	for name, test := range map[string]func(*testing.T, *fixture, *bed.Pod){"stats": moduleStats, "limits": moduleLimits} {
		t.Run(name+"/"+bed.Wasm, func(t *testing.T) {
			n := on(t, b, bed.Wasm)
			test(t, n, n.pod(choose("wasmtime")))
		})
	}
}

// unified sets what only version 2 has names for, and forks beyond a limit.
func unified(t *testing.T, n *fixture) {
	c := n.run(n.pod(nil), func(c *runtime.ContainerConfig) {
		c.Linux.Resources = &runtime.LinuxContainerResources{
			Unified: map[string]string{"pids.max": "10", "memory.high": "33554432", "cpu.weight": "77"},
		}
	})
	equal(t, "most processes", n.limit(c, "pids.max"), "10")
	equal(t, "throttled memory", n.limit(c, "memory.high"), "33554432")
	equal(t, "CPU weight", n.limit(c, "cpu.weight"), "77")
	r, err := c.Exec(n.ctx, "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1000 >/dev/null 2>&1 & done; echo all")
	n.must(err)
	if r.ExitCode == 0 {
		t.Errorf("12 processes are within 10: %s", r.Stdout)
	}
	if !bed.Systemd() || n.handler == bed.VMM {
		return
	}
	unit := "cri-containerd-" + c.ID + ".scope"
	text, err := exec.CommandContext(n.ctx, "systemctl", "show", "--property=ActiveState,Slice,TasksMax,Delegate", unit).CombinedOutput()
	n.must(err)
	contains(t, "unit of systemd", string(text), "ActiveState=active", "Slice=kubepods-pod", "TasksMax=10", "Delegate=yes")
}

// pause stops a container's processes and lets them go on.
func pause(t *testing.T, n *fixture) {
	c := n.run(n.pod(nil), nil)
	n.ctr("task", "pause", c.ID)
	contains(t, "tasks", n.ctr("task", "ls"), "PAUSED")
	n.ctr("task", "resume", c.ID)
	equal(t, "exec", n.exec(c, "echo on"), "on")
}

// machine holds that a pod's is one of KVM and the kernel's vsock, which the
// daemon has chosen: it has seen that they work here.
func machine(t *testing.T, n *fixture, p *bed.Pod) {
	t.Helper()
	s := n.sandboxes()[p.ID]
	equal(t, "acceleration", s.Acceleration, "kvm")
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", s.Pid))
	n.must(err)
	contains(t, "its arguments", string(args), "kvm", "vhost-vsock-pci")
}

// restart kills the daemon, and finds the container as it was.
func restart(t *testing.T, n *fixture) {
	c := n.run(n.pod(nil), bed.Script("sleep 100000"))
	n.must(n.Kill())
	n.must(n.Start(n.ctx))
	equal(t, "exec", n.exec(c, "echo again"), "again")
	container, err := n.Runtime.ContainerStats(n.ctx, &runtime.ContainerStatsRequest{ContainerId: c.ID})
	n.must(err)
	atLeast(t, "CPU time in ns", container.Stats.Cpu.UsageCoreNanoSeconds.GetValue(), 1)
	if n.handler == bed.VMM {
		machine(t, n, c.Pod)
	}
	n.must(c.Stop(n.ctx, 0))
	equal(t, "exit code", n.exit(c).ExitCode, 137)
}

// hugePages gives a container a volume of them, and fewer than there are.
func hugePages(t *testing.T, n *fixture) {
	const count = "/proc/sys/vm/nr_hugepages"
	before, err := os.ReadFile(count)
	n.must(err)
	n.must(os.WriteFile(count, []byte("8"), 0))
	t.Cleanup(func() { n.must(os.WriteFile(count, before, 0)) })
	dir := volumes(t, nil)
	mounted(t, dir+"/huge", "hugetlbfs", "pagesize=2M")
	c := n.run(n.pod(nil), func(c *runtime.ContainerConfig) {
		c.Mounts = []*runtime.Mount{{HostPath: dir + "/huge", ContainerPath: "/huge"}}
		c.Linux.Resources = &runtime.LinuxContainerResources{
			HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}},
		}
	})
	equal(t, "limit", n.limit(c, "hugetlb.2MB.max"), "4194304")
	n.exec(c, "busybox fallocate -l 4194304 /huge/within")
	equal(t, "in use", n.limit(c, "hugetlb.2MB.current"), "4194304")
	r, err := c.Exec(n.ctx, "busybox fallocate -l 2097152 /huge/beyond")
	n.must(err)
	if r.ExitCode == 0 {
		t.Error("three pages are within two")
	}
}

// profile lets all be done but to write to some files.
const profile = `
profile kuasar-lab flags=(attach_disconnected,mediate_deleted) {
  file, signal, capability, network, mount, umount, ptrace,
  deny /denied* w,
}
`

// appArmor runs containers with containerd's profile and with one of the node's.
func appArmor(t *testing.T, n *fixture) {
	load := exec.CommandContext(n.ctx, "apparmor_parser", "--replace", "--skip-cache")
	load.Stdin = strings.NewReader(profile)
	if out, err := load.CombinedOutput(); err != nil {
		t.Fatalf("load the profile: %v: %s", err, out)
	}
	p := n.pod(nil)
	run := func(profile *runtime.SecurityProfile) *bed.Container {
		return n.run(p, func(c *runtime.ContainerConfig) { c.Linux.SecurityContext.Apparmor = profile })
	}
	const current = "cat /proc/1/attr/current /proc/self/attr/current"
	c := run(&runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault})
	const standard = "cri-containerd.apparmor.d (enforce)"
	equal(t, "containerd's profile", n.exec(c, current), standard+"\n"+standard)
	c = run(&runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: "kuasar-lab"})
	equal(t, "profile", n.exec(c, current), "kuasar-lab (enforce)\nkuasar-lab (enforce)")
	n.exec(c, "echo x > /allowed")
	r, err := c.Exec(n.ctx, "echo x > /denied")
	n.must(err)
	contains(t, "write that the profile denies", string(r.Stderr), "Permission denied")
	c = run(&runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined})
	equal(t, "without a profile", n.exec(c, current), "unconfined\nunconfined")
}
