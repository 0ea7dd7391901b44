package group

import (
	"reflect"
	"testing"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func ptr[T any](v T) *T { return &v }

func TestMerge(t *testing.T) {
	old := cgroups.Resources{
		Memory: 100, MemorySwap: 200, CpuQuota: 50, CpuPeriod: 1000, CpuShares: 512, CpuWeight: 20,
		CpusetCpus: "0-1", PidsLimit: ptr(int64(9)),
		HugetlbLimit: []*cgroups.HugepageLimit{{Pagesize: "2MB", Limit: 1}, {Pagesize: "1GB", Limit: 2}},
	}
	for name, c := range map[string]struct {
		r    specs.LinuxResources
		want func(r *cgroups.Resources)
	}{
		"nothing": {specs.LinuxResources{}, func(*cgroups.Resources) {}},
		"empty": {specs.LinuxResources{CPU: &specs.LinuxCPU{}, Memory: &specs.LinuxMemory{}, Pids: &specs.LinuxPids{}, BlockIO: &specs.LinuxBlockIO{}},
			func(*cgroups.Resources) {}},
		"quota alone": {specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(70))}},
			func(r *cgroups.Resources) { r.CpuQuota = 70 }},
		"shares": {specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(1024))}},
			func(r *cgroups.Resources) {
				r.CpuShares, r.CpuWeight = 1024, cgroups.ConvertCPUSharesToCgroupV2Value(1024)
			}},
		"idle": {specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: ptr(int64(1))}},
			func(r *cgroups.Resources) { r.CPUIdle, r.CpuShares, r.CpuWeight = ptr(int64(1)), 0, 0 }},
		"cpus": {specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "3", Mems: "1"}},
			func(r *cgroups.Resources) { r.CpusetCpus, r.CpusetMems = "3", "1" }},
		"memory": {specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(300))}},
			func(r *cgroups.Resources) { r.Memory = 300 }},
		"no memory limit": {specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-1))}},
			func(r *cgroups.Resources) { r.Memory, r.MemorySwap = -1, 0 }},
		"pids": {specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(5))}},
			func(r *cgroups.Resources) { r.PidsLimit = ptr(int64(5)) }},
		"unified": {specs.LinuxResources{Unified: map[string]string{"memory.high": "1"}},
			func(r *cgroups.Resources) { r.Unified = map[string]string{"memory.high": "1"} }},
		"hugepages": {specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 7}}},
			func(r *cgroups.Resources) {
				r.HugetlbLimit = []*cgroups.HugepageLimit{{Pagesize: "1GB", Limit: 2}, {Pagesize: "2MB", Limit: 7}}
			}},
		"throttle": {specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(40)), ThrottleReadBpsDevice: []specs.LinuxThrottleDevice{{Rate: 8}}}},
			func(r *cgroups.Resources) {
				r.BlkioWeight, r.BlkioThrottleReadBpsDevice = 40, []*cgroups.ThrottleDevice{cgroups.NewThrottleDevice(0, 0, 8)}
			}},
	} {
		want := old
		c.want(&want)
		if got := Merge(old, &c.r); !reflect.DeepEqual(*got, want) {
			t.Errorf("%s: got %+v, want %+v", name, *got, want)
		}
	}
	if len(old.HugetlbLimit) != 2 || old.HugetlbLimit[0].Limit != 1 {
		t.Error("the old ones changed")
	}
}
