package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

func TestStats(t *testing.T) { each(t, stats) }

func stats(t *testing.T, n *fixture) {
	p := n.pod(nil)
	c := n.run(p, bed.Script("dd if=/dev/zero of=/dev/shm/file bs=1M count=8 2>/dev/null; seq 1 200000 >/dev/null; echo done; sleep 100000"))
	n.must(c.AwaitLog(n.ctx, "done"))

	container, err := n.Runtime.ContainerStats(n.ctx, &runtime.ContainerStatsRequest{ContainerId: c.ID})
	n.must(err)
	stats := container.Stats
	equal(t, "id", stats.Attributes.Id, c.ID)
	atLeast(t, "CPU time in ns", stats.Cpu.UsageCoreNanoSeconds.GetValue(), 1)
	atLeast(t, "memory in bytes", stats.Memory.UsageBytes.GetValue(), 8<<20)
	atLeast(t, "working set in bytes", stats.Memory.WorkingSetBytes.GetValue(), 8<<20)

	pod, err := n.Runtime.PodSandboxStats(n.ctx, &runtime.PodSandboxStatsRequest{PodSandboxId: p.ID})
	n.must(err)
	linux := pod.Stats.Linux
	atLeast(t, "pod's CPU time in ns", linux.Cpu.UsageCoreNanoSeconds.GetValue(), 1)
	atLeast(t, "pod's working set in bytes", linux.Memory.WorkingSetBytes.GetValue(), 8<<20)
	atLeast(t, "pod's processes", linux.Process.ProcessCount.GetValue(), 1)
	equal(t, "pod's interface", linux.Network.DefaultInterface.Name, "eth0")
	atLeast(t, "pod's received bytes", linux.Network.DefaultInterface.RxBytes.GetValue(), 1)
	equal(t, "pod's containers", len(linux.Containers), 1)

	metrics, err := n.Runtime.ListPodSandboxMetrics(n.ctx, &runtime.ListPodSandboxMetricsRequest{})
	n.must(err)
	equal(t, "pods with metrics", len(metrics.PodMetrics), 1)
}

func atLeast(t testing.TB, what string, got, want uint64) {
	t.Helper()
	if got < want {
		t.Errorf("%s: got %d, want at least %d", what, got, want)
	}
}

// TestUpdate changes the limits of a running container.
func TestUpdate(t *testing.T) { each(t, update) }

func update(t *testing.T, n *fixture) {
	c := n.run(n.pod(nil), func(c *runtime.ContainerConfig) {
		c.Linux.Resources = &runtime.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 150000, MemoryLimitInBytes: 64 << 20}
	})
	limits := func() (string, string) {
		if n.handler == bed.VMM { // the guest has the cgroup
			return n.exec(c, "cut -d ' ' -f 1 /sys/fs/cgroup/cpu.max"), n.exec(c, "cat /sys/fs/cgroup/memory.max")
		}
		return limit(t, c, "cpu"), limit(t, c, "memory")
	}
	cpu, memory := limits()
	equal(t, "CPU quota", cpu, "150000")
	equal(t, "memory limit", memory, "67108864")
	_, err := n.Runtime.UpdateContainerResources(n.ctx, &runtime.UpdateContainerResourcesRequest{
		ContainerId: c.ID,
		Linux:       &runtime.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 120000, MemoryLimitInBytes: 32 << 20},
	})
	n.must(err)
	cpu, memory = limits()
	equal(t, "CPU quota after the update", cpu, "120000")
	equal(t, "memory limit after the update", memory, "33554432")
	status, err := c.Status(n.ctx)
	n.must(err)
	equal(t, "memory limit in the status", status.Resources.Linux.MemoryLimitInBytes, 32<<20)
}

// limit reads a limit from the container's cgroup, of whichever version.
func limit(t testing.TB, c *bed.Container, controller string) string {
	t.Helper()
	var found []string
	for _, pattern := range map[string][]string{
		"cpu":    {"/sys/fs/cgroup/cpu*/kubepods/*/%s/cpu.cfs_quota_us", "/sys/fs/cgroup/kubepods*/*/*%s*/cpu.max"},
		"memory": {"/sys/fs/cgroup/memory/kubepods/*/%s/memory.limit_in_bytes", "/sys/fs/cgroup/kubepods*/*/*%s*/memory.max"},
		"pids":   {"/sys/fs/cgroup/kubepods*/*/*%s*/pids.max"},
		"high":   {"/sys/fs/cgroup/kubepods*/*/*%s*/memory.high"},
		"weight": {"/sys/fs/cgroup/kubepods*/*/*%s*/cpu.weight"},
	}[controller] {
		matches, err := filepath.Glob(strings.ReplaceAll(pattern, "%s", c.ID))
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, matches...)
	}
	if len(found) == 0 {
		t.Fatalf("no %s cgroup of container %s", controller, c.ID)
	}
	raw, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(raw))[0]
}

// TestOOM lets a container use more memory than it may.
func TestOOM(t *testing.T) { each(t, kill) }

func kill(t *testing.T, n *fixture) {
	c := n.run(n.pod(nil), func(c *runtime.ContainerConfig) {
		bed.Script("tail /dev/zero")(c)
		c.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 16 << 20}
	})
	status := n.exit(c)
	equal(t, "exit code", status.ExitCode, 137)
	equal(t, "reason", status.Reason, "OOMKilled")
}

// TestResize changes the resources of a running pod, as kubelet tells it
// after it has changed the pod's cgroup.
func TestResize(t *testing.T) {
	n := on(t, newBed(t, bed.Options{}), bed.Runc)
	p := n.pod(nil)
	c := n.run(p, nil)
	_, err := n.Runtime.UpdatePodSandboxResources(n.ctx, &runtime.UpdatePodSandboxResourcesRequest{
		PodSandboxId: p.ID,
		Resources:    &runtime.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 150000, MemoryLimitInBytes: 256 << 20},
	})
	n.must(err)
	equal(t, "exec", n.exec(c, "echo ok"), "ok")
}
