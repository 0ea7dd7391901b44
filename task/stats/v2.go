package stats

import (
	"bytes"
	"strconv"

	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"

	"github.com/containerd-kuasar/containerd-kuasar/internal/cgroup"
)

func (r *reader) v2(dir string) *v2.Metrics {
	return &v2.Metrics{
		Pids:         &v2.PidsStat{Current: r.number(dir, "pids.current"), Limit: r.number(dir, "pids.max")},
		CPU:          r.v2CPU(dir),
		Memory:       r.v2Memory(dir),
		MemoryEvents: r.v2Events(dir),
		Io:           &v2.IOStat{Usage: parseIO(r.file(dir, "io.stat")), PSI: r.v2Pressure(dir, "io.pressure")},
		Hugetlb:      r.v2Hugetlb(dir),
		Rdma:         &v2.RdmaStat{Current: r.v2RDMA(dir, "rdma.current"), Limit: r.v2RDMA(dir, "rdma.max")},
	}
}

func (r *reader) v2CPU(dir string) *v2.CPUStat {
	c := &v2.CPUStat{PSI: r.v2Pressure(dir, "cpu.pressure")}
	for key, v := range r.keyed(dir, "cpu.stat") {
		switch string(key) {
		case "usage_usec":
			c.UsageUsec = v
		case "user_usec":
			c.UserUsec = v
		case "system_usec":
			c.SystemUsec = v
		case "nr_periods":
			c.NrPeriods = v
		case "nr_throttled":
			c.NrThrottled = v
		case "throttled_usec":
			c.ThrottledUsec = v
		case "nr_bursts":
			c.NrBursts = v
		case "burst_usec":
			c.BurstUsec = v
		}
	}
	return c
}

func (r *reader) v2Memory(dir string) *v2.MemoryStat {
	m := &v2.MemoryStat{
		Usage:        r.number(dir, "memory.current"),
		UsageLimit:   r.number(dir, "memory.max"),
		MaxUsage:     r.number(dir, "memory.peak"),
		SwapUsage:    r.number(dir, "memory.swap.current"),
		SwapLimit:    r.number(dir, "memory.swap.max"),
		SwapMaxUsage: r.number(dir, "memory.swap.peak"),
		PSI:          r.v2Pressure(dir, "memory.pressure"),
	}
	for key, v := range r.keyed(dir, "memory.stat") {
		if field := v2MemoryField(m, key); field != nil {
			*field += v // two lines may count as one
		}
	}
	return m
}

// v2MemoryField names the lines of memory.stat: cgroup-v2.rst, "Memory
// Interface Files". nil is one that the message has no field for.
func v2MemoryField(m *v2.MemoryStat, key []byte) *uint64 {
	switch string(key) {
	case "anon":
		return &m.Anon
	case "file":
		return &m.File
	case "kernel_stack":
		return &m.KernelStack
	case "slab":
		return &m.Slab
	case "sock":
		return &m.Sock
	case "shmem":
		return &m.Shmem
	case "file_mapped":
		return &m.FileMapped
	case "file_dirty":
		return &m.FileDirty
	case "file_writeback":
		return &m.FileWriteback
	case "anon_thp":
		return &m.AnonThp
	case "inactive_anon":
		return &m.InactiveAnon
	case "active_anon":
		return &m.ActiveAnon
	case "inactive_file":
		return &m.InactiveFile
	case "active_file":
		return &m.ActiveFile
	case "unevictable":
		return &m.Unevictable
	case "slab_reclaimable":
		return &m.SlabReclaimable
	case "slab_unreclaimable":
		return &m.SlabUnreclaimable
	}
	return v2EventField(m, key)
}

// v2EventField is for what memory.stat counts.
func v2EventField(m *v2.MemoryStat, key []byte) *uint64 {
	switch string(key) {
	case "pgfault":
		return &m.Pgfault
	case "pgmajfault":
		return &m.Pgmajfault
	// Linux 5.9 split these in two.
	case "workingset_refault", "workingset_refault_anon", "workingset_refault_file":
		return &m.WorkingsetRefault
	case "workingset_activate", "workingset_activate_anon", "workingset_activate_file":
		return &m.WorkingsetActivate
	case "workingset_nodereclaim":
		return &m.WorkingsetNodereclaim
	case "pgrefill":
		return &m.Pgrefill
	case "pgscan":
		return &m.Pgscan
	case "pgsteal":
		return &m.Pgsteal
	case "pgactivate":
		return &m.Pgactivate
	case "pgdeactivate":
		return &m.Pgdeactivate
	case "pglazyfree":
		return &m.Pglazyfree
	case "pglazyfreed":
		return &m.Pglazyfreed
	case "thp_fault_alloc":
		return &m.ThpFaultAlloc
	case "thp_collapse_alloc":
		return &m.ThpCollapseAlloc
	}
	return nil
}

// v2Events is nil without a memory controller.
func (r *reader) v2Events(dir string) *v2.MemoryEvents {
	b := r.file(dir, "memory.events")
	if len(b) == 0 {
		return nil
	}
	e := &v2.MemoryEvents{}
	for key, v := range cgroup.Keyed(b) {
		switch string(key) {
		case "low":
			e.Low = v
		case "high":
			e.High = v
		case "max":
			e.Max = v
		case "oom":
			e.Oom = v
		case "oom_kill":
			e.OomKill = v
		case "oom_group_kill":
			e.OomGroupKill = v
		}
	}
	return e
}

// v2Pressure is nil on a kernel without pressure stall information.
func (r *reader) v2Pressure(dir, name string) *v2.PSIStats { return parsePressure(r.file(dir, name)) }

// parsePressure reads lines "some avg10=0.12 avg60=0.05 avg300=0.01
// total=4711": accounting/psi.rst.
func parsePressure(b []byte) *v2.PSIStats {
	var s v2.PSIStats
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) < 2 {
			continue
		}
		data := &v2.PSIData{}
		switch string(f[0]) {
		case "some":
			s.Some = data
		case "full":
			s.Full = data
		}
		for _, pair := range f[1:] {
			key, value, _ := bytes.Cut(pair, []byte{'='})
			average, _ := strconv.ParseFloat(string(value), 64)
			switch string(key) {
			case "avg10":
				data.Avg10 = average
			case "avg60":
				data.Avg60 = average
			case "avg300":
				data.Avg300 = average
			case "total":
				data.Total, _ = cgroup.ParseUint(value)
			}
		}
	}
	if s.Some == nil && s.Full == nil {
		return nil
	}
	return &s
}

// parseIO reads lines "8:0 rbytes=4096 wbytes=0 rios=1 wios=0 …".
func parseIO(b []byte) []*v2.IOEntry {
	var list []*v2.IOEntry
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) < 2 {
			continue
		}
		major, minor, ok := device(f[0])
		if !ok {
			continue
		}
		e := &v2.IOEntry{Major: major, Minor: minor}
		for _, pair := range f[1:] {
			key, value, _ := bytes.Cut(pair, []byte{'='})
			v, _ := cgroup.ParseUint(value)
			switch string(key) {
			case "rbytes":
				e.Rbytes = v
			case "wbytes":
				e.Wbytes = v
			case "rios":
				e.Rios = v
			case "wios":
				e.Wios = v
			}
		}
		list = append(list, e)
	}
	return list
}

func (r *reader) v2Hugetlb(dir string) []*v2.HugeTlbStat {
	var list []*v2.HugeTlbStat
	for _, size := range pageSizes() {
		s := &v2.HugeTlbStat{
			Current:  r.number(dir, "hugetlb."+size+".current"),
			Max:      r.number(dir, "hugetlb."+size+".max"),
			Pagesize: size,
		}
		for key, v := range r.keyed(dir, "hugetlb."+size+".events") {
			if string(key) == "max" {
				s.Failcnt = v
			}
		}
		list = append(list, s)
	}
	return list
}

func (r *reader) v2RDMA(dir, name string) []*v2.RdmaEntry {
	var list []*v2.RdmaEntry
	for _, e := range parseRDMA(r.file(dir, name)) {
		list = append(list, &v2.RdmaEntry{Device: e.device, HcaHandles: e.handles, HcaObjects: e.objects})
	}
	return list
}
