package e2e

import (
	"os"
	"os/exec"
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
	for _, part := range []struct {
		name string
		test func(*testing.T, *fixture)
	}{
		{"life", crictlLife},
		{"stats", stats},
		{"update", update},
		{"unified", unified},
		{"pause", pause},
		{"OOM", kill},
		{"restart", restart},
	} {
		for _, handler := range handlers() {
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
	equal(t, "most processes", limit(t, c, "pids"), "10")
	equal(t, "throttled memory", limit(t, c, "high"), "33554432")
	equal(t, "CPU weight", limit(t, c, "weight"), "77")
	r, err := c.Exec(n.ctx, "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1000 >/dev/null 2>&1 & done; echo all")
	n.must(err)
	if r.ExitCode == 0 {
		t.Errorf("12 processes are within 10: %s", r.Stdout)
	}
	if !bed.Systemd() {
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

// restart kills the daemon, and finds the container as it was.
func restart(t *testing.T, n *fixture) {
	c := n.run(n.pod(nil), bed.Script("sleep 100000"))
	n.must(n.Kill())
	n.must(n.Start(n.ctx))
	equal(t, "exec", n.exec(c, "echo again"), "again")
	container, err := n.Runtime.ContainerStats(n.ctx, &runtime.ContainerStatsRequest{ContainerId: c.ID})
	n.must(err)
	atLeast(t, "CPU time in ns", container.Stats.Cpu.UsageCoreNanoSeconds.GetValue(), 1)
	n.must(c.Stop(n.ctx, 0))
	equal(t, "exit code", n.exit(c).ExitCode, 137)
}
