package stats

import (
	"bytes"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd-kuasar/containerd-kuasar/internal/cgroup"
)

// device reads "8:16".
func device(b []byte) (major, minor uint64, ok bool) {
	a, c, found := bytes.Cut(b, []byte{':'})
	major, errA := strconv.ParseUint(string(a), 10, 32)
	minor, errC := strconv.ParseUint(string(c), 10, 32)
	return major, minor, found && errA == nil && errC == nil
}

// devices reads /proc/partitions: major, minor, blocks and name.
func devices(b []byte) map[[2]uint64]string {
	names := map[[2]uint64]string{}
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) != 4 {
			continue
		}
		major, err := strconv.ParseUint(string(f[0]), 10, 32)
		if err != nil { // the heading
			continue
		}
		minor, err := strconv.ParseUint(string(f[1]), 10, 32)
		if err != nil {
			continue
		}
		names[[2]uint64{major, minor}] = "/dev/" + string(f[3])
	}
	return names
}

type rdma struct {
	device           string
	handles, objects uint32
}

// parseRDMA reads lines "mlx4_0 hca_handle=2 hca_object=max".
func parseRDMA(b []byte) []rdma {
	var list []rdma
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) < 2 {
			continue
		}
		e := rdma{device: string(f[0])}
		for _, pair := range f[1:] {
			key, value, _ := bytes.Cut(pair, []byte{'='})
			v, _ := cgroup.ParseUint(value)
			v = min(v, math.MaxUint32) // so is "max"
			switch string(key) {
			case "hca_handle":
				e.handles = uint32(v)
			case "hca_object":
				e.objects = uint32(v)
			}
		}
		list = append(list, e)
	}
	return list
}

// pageSizes are this machine's sizes of huge pages, as the hugetlb files name
// them: "2MB". They do not change while it runs.
var pageSizes = sync.OnceValue(func() []string {
	entries, _ := os.ReadDir("/sys/kernel/mm/hugepages") // none without huge pages
	var sizes []string
	for _, e := range entries {
		if size, ok := pageSize(e.Name()); ok {
			sizes = append(sizes, size)
		}
	}
	return sizes
})

// pageSize makes "2MB" of "hugepages-2048kB".
func pageSize(name string) (string, bool) {
	kb, ok := strings.CutPrefix(name, "hugepages-")
	kb, ok2 := strings.CutSuffix(kb, "kB")
	n, err := strconv.ParseUint(kb, 10, 32)
	if !ok || !ok2 || err != nil {
		return "", false
	}
	switch {
	case n >= 1<<20:
		return strconv.FormatUint(n>>20, 10) + "GB", true
	case n >= 1<<10:
		return strconv.FormatUint(n>>10, 10) + "MB", true
	}
	return strconv.FormatUint(n, 10) + "KB", true
}
