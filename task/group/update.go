package group

import (
	"slices"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Merge returns old with what is set in r.
func Merge(old cgroups.Resources, r *specs.LinuxResources) *cgroups.Resources {
	if r.CPU != nil {
		mergeCPU(&old, *r.CPU)
	}
	if m := r.Memory; m != nil {
		set(&old.Memory, m.Limit)
		set(&old.MemoryReservation, m.Reservation)
		set(&old.MemorySwap, m.Swap)
		set(&old.MemoryCheckBeforeUpdate, m.CheckBeforeUpdate)
		if m.Limit != nil && *m.Limit == -1 && m.Swap == nil {
			old.MemorySwap = 0 // a limit of swap needs one of memory
		}
	}
	if r.Pids != nil && r.Pids.Limit != nil {
		old.PidsLimit = r.Pids.Limit
	}
	if r.BlockIO != nil {
		mergeBlockIO(&old, r.BlockIO)
	}
	if r.Unified != nil {
		old.Unified = r.Unified
	}
	for _, l := range r.HugepageLimits {
		old.HugetlbLimit = upsert(old.HugetlbLimit,
			&cgroups.HugepageLimit{Pagesize: l.Pagesize, Limit: l.Limit},
			func(a, b *cgroups.HugepageLimit) bool { return a.Pagesize == b.Pagesize })
	}
	return &old
}

func mergeCPU(old *cgroups.Resources, c specs.LinuxCPU) {
	set(&old.CpuPeriod, c.Period)
	set(&old.CpuQuota, c.Quota)
	set(&old.CpuRtPeriod, c.RealtimePeriod)
	set(&old.CpuRtRuntime, c.RealtimeRuntime)
	if c.Burst != nil {
		old.CpuBurst = c.Burst
	}
	if c.Idle != nil {
		old.CPUIdle = c.Idle
		if c.Shares == nil {
			old.CpuShares, old.CpuWeight = 0, 0 // an idle group's weight cannot be set
		}
	}
	if c.Shares != nil {
		old.CpuShares = *c.Shares
		old.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(*c.Shares)
	}
	if c.Cpus != "" {
		old.CpusetCpus = c.Cpus
	}
	if c.Mems != "" {
		old.CpusetMems = c.Mems
	}
}

func mergeBlockIO(old *cgroups.Resources, b *specs.LinuxBlockIO) {
	set(&old.BlkioWeight, b.Weight)
	set(&old.BlkioLeafWeight, b.LeafWeight)
	for _, d := range b.WeightDevice {
		var weight, leaf uint16
		set(&weight, d.Weight)
		set(&leaf, d.LeafWeight)
		old.BlkioWeightDevice = upsert(old.BlkioWeightDevice,
			cgroups.NewWeightDevice(d.Major, d.Minor, weight, leaf),
			func(a, b *cgroups.WeightDevice) bool { return a.Major == b.Major && a.Minor == b.Minor })
	}
	for _, t := range []struct {
		to   *[]*cgroups.ThrottleDevice
		from []specs.LinuxThrottleDevice
	}{
		{&old.BlkioThrottleReadBpsDevice, b.ThrottleReadBpsDevice},
		{&old.BlkioThrottleWriteBpsDevice, b.ThrottleWriteBpsDevice},
		{&old.BlkioThrottleReadIOPSDevice, b.ThrottleReadIOPSDevice},
		{&old.BlkioThrottleWriteIOPSDevice, b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range t.from {
			*t.to = upsert(*t.to, cgroups.NewThrottleDevice(d.Major, d.Minor, d.Rate),
				func(a, b *cgroups.ThrottleDevice) bool { return a.Major == b.Major && a.Minor == b.Minor })
		}
	}
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

// upsert returns a copy of list with v in the place of what is the same.
func upsert[T any](list []*T, v *T, same func(a, b *T) bool) []*T {
	list = slices.DeleteFunc(slices.Clone(list), func(e *T) bool { return same(e, v) })
	return append(list, v)
}
