package e2e

import (
	"strconv"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// A machine gets what its pod's new limits allow, and gives it back, also after
// a restart of the daemon. Containers see it at once.
func TestResizeVM(t *testing.T) {
	bed.RequireVMM(t)
	n := on(t, newBed(t, bed.Options{Config: `
[plugins.'io.containerd.sandbox.controller.v1.vmm']
  max_vcpus = 2
  max_memory = 768
`}), bed.VMM)
	p := n.pod(nil)
	c := n.run(p, nil)
	start := n.memoryTotal(c)
	n.sees(p, c, 1, start)
	n.must(n.resize(p, 2, 416))
	n.sees(p, c, 2, start+384)
	n.must(n.Kill())
	n.must(n.Start(n.ctx))
	n.sees(p, c, 2, start+384)
	if err := n.resize(p, 3, 416); err == nil || !strings.Contains(err.Error(), "max_vcpus") {
		t.Errorf("more processors than it may have: %v", err)
	}
	if err := n.resize(p, 2, 1024); err == nil || !strings.Contains(err.Error(), "max_memory") {
		t.Errorf("more memory than it may have: %v", err)
	}
	n.must(n.resize(p, 1, 160))
	n.sees(p, c, 1, start+128)
	n.must(n.resize(p, 2, 416))
	n.sees(p, c, 2, start+384)
	n.must(p.Remove(n.ctx))
}

// resize is what the kubelet says of a pod's new limits: of whole processors,
// and in MiB.
func (n *fixture) resize(p *bed.Pod, cpus, memory int64) error {
	_, err := n.Runtime.UpdatePodSandboxResources(n.ctx, &runtime.UpdatePodSandboxResourcesRequest{
		PodSandboxId: p.ID,
		Resources:    &runtime.LinuxContainerResources{CpuQuota: cpus * 100_000, CpuPeriod: 100_000, MemoryLimitInBytes: memory << 20},
	})
	return err
}

// memoryTotal is what a container sees, in MiB.
func (n *fixture) memoryTotal(c *bed.Container) int {
	n.t.Helper()
	kib, _, _ := strings.Cut(field(n.exec(c, "cat /proc/meminfo"), "MemTotal"), " ")
	total, err := strconv.Atoi(kib)
	n.must(err)
	return total >> 10
}

// sees says what a container of a machine sees of it, and kuasar-ctl says the
// same.
func (n *fixture) sees(p *bed.Pod, c *bed.Container, cpus, memory int) {
	n.t.Helper()
	equal(n.t, "processors", n.exec(c, "grep -c ^processor /proc/cpuinfo"), strconv.Itoa(cpus))
	// The kernel takes some of a device's for itself.
	if got := n.memoryTotal(c); got > memory || got < memory-16 {
		n.t.Errorf("%d MiB of memory, want %d", got, memory)
	}
	if s := n.sandboxes()[p.ID]; s.VCPUs != uint32(cpus) {
		n.t.Errorf("kuasar-ctl shows %d processors, want %d", s.VCPUs, cpus)
	}
}
