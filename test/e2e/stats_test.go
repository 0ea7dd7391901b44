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
	equal(t, "CPU quota", n.limit(c, "cpu.max"), "150000")
	equal(t, "memory limit", n.limit(c, "memory.max"), "67108864")
	_, err := n.Runtime.UpdateContainerResources(n.ctx, &runtime.UpdateContainerResourcesRequest{
		ContainerId: c.ID,
		Linux:       &runtime.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 120000, MemoryLimitInBytes: 32 << 20},
	})
	n.must(err)
	equal(t, "CPU quota after the update", n.limit(c, "cpu.max"), "120000")
	equal(t, "memory limit after the update", n.limit(c, "memory.max"), "33554432")
	status, err := c.Status(n.ctx)
	n.must(err)
	equal(t, "memory limit in the status", status.Resources.Linux.MemoryLimitInBytes, 32<<20)
}

// limit reads a limit from the container's cgroup, of whichever version, by the
// name that version 2 has. The cgroup of one in a virtual machine is the guest's.
func (n *fixture) limit(c *bed.Container, name string) string {
	n.t.Helper()
	if n.handler == bed.VMM || n.handler == bed.VMMBlock {
		return strings.Fields(n.exec(c, "cat /sys/fs/cgroup/"+name))[0]
	}
	patterns := []string{"/sys/fs/cgroup/kubepods*/*/*%s*/" + name}
	switch name {
	case "cpu.max":
		patterns = append(patterns, "/sys/fs/cgroup/cpu*/kubepods/*/%s/cpu.cfs_quota_us")
	case "memory.max":
		patterns = append(patterns, "/sys/fs/cgroup/memory/kubepods/*/%s/memory.limit_in_bytes")
	}
	for _, pattern := range patterns {
		found, err := filepath.Glob(strings.ReplaceAll(pattern, "%s", c.ID))
		n.must(err)
		if len(found) > 0 {
			raw, err := os.ReadFile(found[0])
			n.must(err)
			return strings.Fields(string(raw))[0]
		}
	}
	n.t.Fatalf("no cgroup of container %s has %s", c.ID, name)
	return ""
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
