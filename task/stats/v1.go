package stats

import (
	"bytes"
	"math"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"

	"github.com/containerd-kuasar/containerd-kuasar/internal/cgroup"
)

// tick is the unit of cpuacct.stat in nanoseconds: USER_HZ is 100 on all
// architectures that containers run on.
const tick = 10_000_000

func (r *reader) v1(paths map[string]string) *v1.Metrics {
	m := &v1.Metrics{}
	if dir := paths["cpuacct"]; dir != "" {
		m.CPU = &v1.CPUStat{Usage: r.v1CPU(dir)}
	}
	if dir := paths["cpu"]; dir != "" {
		if m.CPU == nil {
			m.CPU = &v1.CPUStat{}
		}
		m.CPU.Throttling = r.v1Throttle(dir)
	}
	if dir := paths["memory"]; dir != "" {
		m.Memory = r.v1Memory(dir)
		m.MemoryOomControl = r.v1OOM(dir)
	}
	if dir := paths["pids"]; dir != "" {
		m.Pids = &v1.PidsStat{Current: r.number(dir, "pids.current"), Limit: r.number(dir, "pids.max")}
		if m.Pids.Limit == math.MaxUint64 {
			m.Pids.Limit = 0 // as containerd/cgroups says it for v1
		}
	}
	if dir := paths["blkio"]; dir != "" {
		m.Blkio = r.v1Blkio(dir)
	}
	if dir := paths["hugetlb"]; dir != "" {
		m.Hugetlb = r.v1Hugetlb(dir)
	}
	if dir := paths["rdma"]; dir != "" {
		m.Rdma = &v1.RdmaStat{Current: r.v1RDMA(dir, "rdma.current"), Limit: r.v1RDMA(dir, "rdma.max")}
	}
	return m
}

func (r *reader) v1CPU(dir string) *v1.CPUUsage {
	u := &v1.CPUUsage{Total: r.number(dir, "cpuacct.usage")}
	for key, v := range r.keyed(dir, "cpuacct.stat") {
		switch string(key) {
		case "user":
			u.User = v * tick
		case "system":
			u.Kernel = v * tick
		}
	}
	for field := range bytes.FieldsSeq(r.file(dir, "cpuacct.usage_percpu")) {
		v, _ := cgroup.ParseUint(field)
		u.PerCPU = append(u.PerCPU, v)
	}
	return u
}

func (r *reader) v1Throttle(dir string) *v1.Throttle {
	t := &v1.Throttle{}
	for key, v := range r.keyed(dir, "cpu.stat") {
		switch string(key) {
		case "nr_periods":
			t.Periods = v
		case "nr_throttled":
			t.ThrottledPeriods = v
		case "throttled_time":
			t.ThrottledTime = v
		}
	}
	return t
}

func (r *reader) v1Memory(dir string) *v1.MemoryStat {
	m := &v1.MemoryStat{
		Usage:     r.v1Entry(dir, "memory"),
		Swap:      r.v1Entry(dir, "memory.memsw"),
		Kernel:    r.v1Entry(dir, "memory.kmem"),
		KernelTCP: r.v1Entry(dir, "memory.kmem.tcp"),
	}
	for key, v := range r.keyed(dir, "memory.stat") {
		if field := v1MemoryField(m, key); field != nil {
			*field = v
		}
	}
	return m
}

func (r *reader) v1Entry(dir, prefix string) *v1.MemoryEntry {
	return &v1.MemoryEntry{
		Limit:   r.number(dir, prefix+".limit_in_bytes"),
		Usage:   r.number(dir, prefix+".usage_in_bytes"),
		Max:     r.number(dir, prefix+".max_usage_in_bytes"),
		Failcnt: r.number(dir, prefix+".failcnt"),
	}
}

// v1MemoryField names the lines of memory.stat: cgroup-v1/memory.rst, "stat
// file". nil is one that the message has no field for.
func v1MemoryField(m *v1.MemoryStat, key []byte) *uint64 {
	if total, ok := bytes.CutPrefix(key, []byte("total_")); ok {
		return v1TotalField(m, total)
	}
	switch string(key) {
	case "cache":
		return &m.Cache
	case "rss":
		return &m.RSS
	case "rss_huge":
		return &m.RSSHuge
	case "mapped_file":
		return &m.MappedFile
	case "dirty":
		return &m.Dirty
	case "writeback":
		return &m.Writeback
	case "pgpgin":
		return &m.PgPgIn
	case "pgpgout":
		return &m.PgPgOut
	case "pgfault":
		return &m.PgFault
	case "pgmajfault":
		return &m.PgMajFault
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
	case "hierarchical_memory_limit":
		return &m.HierarchicalMemoryLimit
	case "hierarchical_memsw_limit":
		return &m.HierarchicalSwapLimit
	}
	return nil
}

// v1TotalField is for the lines that include the cgroups below.
func v1TotalField(m *v1.MemoryStat, key []byte) *uint64 {
	switch string(key) {
	case "cache":
		return &m.TotalCache
	case "rss":
		return &m.TotalRSS
	case "rss_huge":
		return &m.TotalRSSHuge
	case "mapped_file":
		return &m.TotalMappedFile
	case "dirty":
		return &m.TotalDirty
	case "writeback":
		return &m.TotalWriteback
	case "pgpgin":
		return &m.TotalPgPgIn
	case "pgpgout":
		return &m.TotalPgPgOut
	case "pgfault":
		return &m.TotalPgFault
	case "pgmajfault":
		return &m.TotalPgMajFault
	case "inactive_anon":
		return &m.TotalInactiveAnon
	case "active_anon":
		return &m.TotalActiveAnon
	case "inactive_file":
		return &m.TotalInactiveFile
	case "active_file":
		return &m.TotalActiveFile
	case "unevictable":
		return &m.TotalUnevictable
	}
	return nil
}

func (r *reader) v1OOM(dir string) *v1.MemoryOomControl {
	o := &v1.MemoryOomControl{}
	for key, v := range r.keyed(dir, "memory.oom_control") {
		switch string(key) {
		case "oom_kill_disable":
			o.OomKillDisable = v
		case "under_oom":
			o.UnderOom = v
		case "oom_kill":
			o.OomKill = v
		}
	}
	return o
}

func (r *reader) v1Blkio(dir string) *v1.BlkIOStat {
	b := &v1.BlkIOStat{
		// Of the CFQ scheduler (before Linux 5.0), of any scheduler since 5.0,
		// and of any without the cgroups below.
		IoServiceBytesRecursive: r.v1IO(dir, "blkio.io_service_bytes_recursive", "blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"),
		IoServicedRecursive:     r.v1IO(dir, "blkio.io_serviced_recursive", "blkio.throttle.io_serviced_recursive", "blkio.throttle.io_serviced"),
		IoTimeRecursive:         r.v1IO(dir, "blkio.time_recursive"),
	}
	if len(b.IoTimeRecursive) > 0 { // CFQ has more
		b.IoQueuedRecursive = r.v1IO(dir, "blkio.io_queued_recursive")
		b.IoServiceTimeRecursive = r.v1IO(dir, "blkio.io_service_time_recursive")
		b.IoWaitTimeRecursive = r.v1IO(dir, "blkio.io_wait_time_recursive")
		b.IoMergedRecursive = r.v1IO(dir, "blkio.io_merged_recursive")
		b.SectorsRecursive = r.v1IO(dir, "blkio.sectors_recursive")
	}
	names := map[[2]uint64]string{}
	for _, list := range [][]*v1.BlkIOEntry{
		b.IoServiceBytesRecursive, b.IoServicedRecursive, b.IoTimeRecursive, b.IoQueuedRecursive,
		b.IoServiceTimeRecursive, b.IoWaitTimeRecursive, b.IoMergedRecursive, b.SectorsRecursive,
	} {
		if len(list) > 0 && len(names) == 0 {
			names = devices(r.file("/proc", "partitions"))
		}
		for _, e := range list {
			e.Device = names[[2]uint64{e.Major, e.Minor}]
		}
	}
	return b
}

// v1IO takes the first of the files that has something in it.
func (r *reader) v1IO(dir string, files ...string) []*v1.BlkIOEntry {
	for _, name := range files {
		if list := parseBlkio(r.file(dir, name)); len(list) > 0 {
			return list
		}
	}
	return nil
}

// parseBlkio reads lines "8:0 Read 4096" and "8:0 4096"; that with the total
// of all devices has no device.
func parseBlkio(b []byte) []*v1.BlkIOEntry {
	var list []*v1.BlkIOEntry
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) < 2 || len(f) > 3 {
			continue
		}
		major, minor, ok := device(f[0])
		value, okValue := cgroup.ParseUint(f[len(f)-1])
		if !ok || !okValue {
			continue
		}
		e := &v1.BlkIOEntry{Major: major, Minor: minor, Value: value}
		if len(f) == 3 {
			e.Op = string(f[1])
		}
		list = append(list, e)
	}
	return list
}

func (r *reader) v1Hugetlb(dir string) []*v1.HugetlbStat {
	var list []*v1.HugetlbStat
	for _, size := range pageSizes() {
		list = append(list, &v1.HugetlbStat{
			Usage:    r.number(dir, "hugetlb."+size+".usage_in_bytes"),
			Max:      r.number(dir, "hugetlb."+size+".max_usage_in_bytes"),
			Failcnt:  r.number(dir, "hugetlb."+size+".failcnt"),
			Pagesize: size,
		})
	}
	return list
}

func (r *reader) v1RDMA(dir, name string) []*v1.RdmaEntry {
	var list []*v1.RdmaEntry
	for _, e := range parseRDMA(r.file(dir, name)) {
		list = append(list, &v1.RdmaEntry{Device: e.device, HcaHandles: e.handles, HcaObjects: e.objects})
	}
	return list
}
