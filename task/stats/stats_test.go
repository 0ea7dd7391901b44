package stats

import (
	"errors"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/cgroups/v3/cgroup1"
	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	"github.com/containerd/cgroups/v3/cgroup2"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
)

func metrics[M proto.Message](t *testing.T, paths map[string]string) M {
	t.Helper()
	data, err := Metrics(paths)
	if err != nil {
		t.Fatal(err)
	}
	m, err := typeurl.UnmarshalAny(data)
	if err != nil {
		t.Fatal(err)
	}
	got, ok := m.(M)
	if !ok {
		t.Fatalf("metrics are %T", m)
	}
	return got
}

func same(t *testing.T, got, want proto.Message) {
	t.Helper()
	if !proto.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", prototext.Format(got), prototext.Format(want))
	}
}

// fixture is testdata with the files of this machine's huge pages.
func fixture(t *testing.T, version string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", version))); err != nil {
		t.Fatal(err)
	}
	return dir
}

func put(t *testing.T, content string, path ...string) {
	t.Helper()
	name := filepath.Join(path...)
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(content), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// The readers of containerd/cgroups say what containerd's users expect.
func TestV2LikeContainerd(t *testing.T) {
	dir := fixture(t, "v2")
	for i, size := range pageSizes() {
		put(t, []string{"4096", "0", "1"}[i%3], dir, "hugetlb."+size+".current")
		put(t, "max", dir, "hugetlb."+size+".max")
		put(t, "max 3\n", dir, "hugetlb."+size+".events")
	}
	got := metrics[*v2.Metrics](t, map[string]string{"": dir})
	manager, err := cgroup2.Load("/", cgroup2.WithMountpoint(dir))
	if err != nil {
		t.Fatal(err)
	}
	want, err := manager.Stat()
	if err != nil {
		t.Fatal(err)
	}
	// These it looks for under the names of older kernels.
	want.Memory.WorkingsetRefault, want.Memory.WorkingsetActivate = 43, 21
	// And it leaves out devices without counts in another way.
	want.Io.Usage = slices.DeleteFunc(want.Io.Usage, func(e *v2.IOEntry) bool { return e.Major == 7 })
	slices.SortFunc(want.Hugetlb, func(a, b *v2.HugeTlbStat) int { return strings.Compare(a.Pagesize, b.Pagesize) })
	same(t, got, want)
	if got.Memory.Usage != 9306112 || got.CPU.PSI.Some.Avg10 != 1.25 || len(got.Io.Usage) != 2 || got.Memory.SwapLimit != math.MaxUint64 {
		t.Errorf("fixture was not read: %s", prototext.Format(got))
	}
}

func v1Paths(root string) map[string]string {
	paths := map[string]string{}
	for _, c := range controllers {
		paths[c] = filepath.Join(root, c)
	}
	return paths
}

func TestV1LikeContainerd(t *testing.T) {
	dir := fixture(t, "v1")
	for _, size := range pageSizes() {
		for _, name := range []string{"usage_in_bytes", "max_usage_in_bytes", "failcnt"} {
			put(t, "8192", dir, "hugetlb", "hugetlb."+size+"."+name)
		}
	}
	got := metrics[*v1.Metrics](t, v1Paths(dir))
	want := likeContainerd(t, dir, "/")
	// It takes the numbers without the cgroups below.
	for i, e := range want.Blkio.IoServiceBytesRecursive {
		e.Value = 100 + uint64(i) + 1
	}
	for i, e := range want.Blkio.IoServicedRecursive {
		e.Value = 300 + uint64(i) + 1
	}
	for _, list := range [][]*v1.BlkIOEntry{got.Blkio.IoServiceBytesRecursive, got.Blkio.IoServicedRecursive} {
		if len(list) != 6 {
			t.Errorf("%d entries of blkio", len(list))
		}
	}
	slices.SortFunc(want.Hugetlb, func(a, b *v1.HugetlbStat) int { return strings.Compare(a.Pagesize, b.Pagesize) })
	same(t, got, want)
}

func TestHybridIsV1(t *testing.T) {
	dir := t.TempDir()
	put(t, "8192", dir, "memory", "memory.usage_in_bytes")
	put(t, "usage_usec 1\n", dir, "unified", "cpu.stat")
	paths := v1Paths(dir)
	paths[""] = filepath.Join(dir, "unified")
	if got := metrics[*v1.Metrics](t, paths).Memory.Usage.Usage; got != 8192 {
		t.Errorf("%d bytes of memory", got)
	}
}

// likeContainerd asks the controllers that root has.
func likeContainerd(t *testing.T, root, path string) *v1.Metrics {
	t.Helper()
	m := &v1.Metrics{CPU: &v1.CPUStat{Usage: &v1.CPUUsage{}, Throttling: &v1.Throttle{}}}
	hugetlb, err := cgroup1.NewHugetlb(root)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]interface {
		Stat(string, *v1.Metrics) error
	}{
		"cpu": cgroup1.NewCpu(root), "cpuacct": cgroup1.NewCpuacct(root), "memory": cgroup1.NewMemory(root),
		"pids": cgroup1.NewPids(root), "blkio": cgroup1.NewBlkio(root), "rdma": cgroup1.NewRdma(root), "hugetlb": hugetlb,
	} {
		if _, err := os.Stat(filepath.Join(root, name)); err != nil {
			continue
		}
		if err := c.Stat(path, m); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func TestCFQ(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"io_service_bytes", "io_serviced", "io_queued", "io_service_time", "io_wait_time", "io_merged"} {
		put(t, "8:0 Read 5\n8:0 Total 5\nTotal 5\n", dir, "blkio", "blkio."+name+"_recursive")
	}
	put(t, "8:0 77\n", dir, "blkio", "blkio.time_recursive")
	put(t, "8:0 88\n", dir, "blkio", "blkio.sectors_recursive")
	put(t, "8:0 Read 9\n", dir, "blkio", "blkio.throttle.io_serviced")
	got := metrics[*v1.Metrics](t, map[string]string{"blkio": dir + "/blkio"})
	want := &v1.Metrics{}
	if err := cgroup1.NewBlkio(dir).Stat("/", want); err != nil {
		t.Fatal(err)
	}
	same(t, got, want)
	if got.Blkio.SectorsRecursive[0].Value != 88 {
		t.Errorf("got %s", prototext.Format(got))
	}
}

// real makes a cgroup with some usage in it in all controllers of this host.
func real(t *testing.T) (path string, paths map[string]string) {
	t.Helper()
	mounts, err := mounted()
	if err != nil {
		t.Skipf("no cgroups: %v", err)
	}
	if _, ok := mounts["memory"]; !ok {
		t.Skip("no memory controller of cgroup v1")
	}
	path = "/kuasar-stats-test-" + filepath.Base(t.TempDir())
	for _, mount := range mounts {
		dir := filepath.Join(mount, path)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			t.Skipf("cannot make a cgroup: %v", err)
		}
		t.Cleanup(func() {
			if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
		})
	}
	paths, err = Paths(path)
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(paths, mustFind(t, path)) {
		t.Errorf("paths are %v", paths)
	}
	use(t, paths)
	return path, paths
}

// use spends time and memory in a cgroup.
func use(t *testing.T, paths map[string]string) {
	t.Helper()
	script := ""
	for _, dir := range paths {
		script += "echo $$ > " + dir + "/cgroup.procs; "
	}
	out, err := exec.Command("sh", "-c", script+"i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; head -c 3000000 /dev/zero > /dev/shm/kuasar-stats-test; cat /dev/shm/kuasar-stats-test > /dev/null").CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	t.Cleanup(func() { _ = os.Remove("/dev/shm/kuasar-stats-test") })
}

func mustFind(t *testing.T, path string) map[string]string {
	t.Helper()
	paths, err := find(path)
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func TestRealCgroup(t *testing.T) {
	path, paths := real(t)
	got := metrics[*v1.Metrics](t, paths)
	root := filepath.Dir(strings.TrimSuffix(paths["memory"], path))
	if got.CPU.Usage.Total == 0 || got.Memory.Usage.Usage < 3_000_000 || got.Memory.TotalPgFault == 0 || got.Pids.Current != 0 {
		t.Errorf("got %s", prototext.Format(got))
	}
	// The kernel adds up its counters now and then. What all three say between
	// two of these times must be the same.
	deadline := time.Now().Add(20 * time.Second)
	for {
		want := likeContainerd(t, root, path)
		again := metrics[*v1.Metrics](t, paths)
		pod, err := Pod(path)
		if err != nil {
			t.Fatal(err)
		}
		m, err := typeurl.UnmarshalAny(pod)
		if err != nil {
			t.Fatal(err)
		}
		want.Blkio = again.Blkio // see TestV1LikeContainerd
		m.(*v1.Metrics).Blkio = again.Blkio
		if proto.Equal(got, again) && proto.Equal(got, want) && proto.Equal(got, m.(proto.Message)) {
			return
		}
		if time.Now().After(deadline) {
			same(t, got, want)
			same(t, m.(proto.Message), got)
			return
		}
		got = again
	}
}

func TestRealCgroupV2(t *testing.T) {
	const root = "/sys/fs/cgroup"
	path := "/kuasar-stats-test-" + filepath.Base(t.TempDir())
	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		t.Skip("no cgroup v2 at " + root)
	}
	if err := os.Mkdir(root+path, 0o755); err != nil {
		t.Skipf("cannot make a cgroup: %v", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(root + path); err != nil {
			t.Error(err)
		}
	})
	for _, file := range []string{"memory.current", "pids.current", "cpu.max", "io.stat"} {
		if _, err := os.Stat(filepath.Join(root, path, file)); err != nil {
			t.Skipf("the root of cgroup v2 does not share out controllers: %v", err)
		}
	}
	paths, err := Paths(path)
	if err != nil {
		t.Fatal(err)
	}
	use(t, paths)
	got := metrics[*v2.Metrics](t, paths)
	if got.CPU.UsageUsec == 0 || got.Memory.Usage < 3_000_000 || got.Memory.Pgfault == 0 || got.Pids.Current != 0 || got.MemoryEvents == nil {
		t.Errorf("got %s", prototext.Format(got))
	}
	manager, err := cgroup2.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	// The kernel adds up its counters now and then, as in TestRealCgroup.
	deadline := time.Now().Add(20 * time.Second)
	for {
		want, err := manager.Stat()
		if err != nil {
			t.Fatal(err)
		}
		again := metrics[*v2.Metrics](t, paths)
		pod, err := Pod(path)
		if err != nil {
			t.Fatal(err)
		}
		m, err := typeurl.UnmarshalAny(pod)
		if err != nil {
			t.Fatal(err)
		}
		// See TestV2LikeContainerd.
		want.Memory.WorkingsetRefault, want.Memory.WorkingsetActivate = again.Memory.WorkingsetRefault, again.Memory.WorkingsetActivate
		slices.SortFunc(want.Hugetlb, func(a, b *v2.HugeTlbStat) int { return strings.Compare(a.Pagesize, b.Pagesize) })
		if proto.Equal(got, again) && proto.Equal(got, want) && proto.Equal(got, m.(proto.Message)) {
			return
		}
		if time.Now().After(deadline) {
			same(t, got, want)
			same(t, m.(proto.Message), got)
			return
		}
		got = again
	}
}

func TestGone(t *testing.T) {
	for _, paths := range []map[string]string{
		nil,
		{"": "/none"},
		{"memory": "/none", "cpu": "/none", "pids": "/none"},
		{"devices": "/sys/fs/cgroup/devices"},
	} {
		if _, err := Metrics(paths); !errdefs.IsNotFound(err) {
			t.Errorf("%v: got %v", paths, err)
		}
	}
	if _, err := Pod("/no/such/cgroup"); !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
		t.Errorf("pod: got %v", err)
	}
	if _, err := Paths("/no/such/cgroup"); !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
		t.Errorf("paths: got %v", err)
	}
	for _, path := range []string{"", "relative", "/a/../b", "a.slice:b:c"} {
		if _, err := Pod(path); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: got %v", path, err)
		}
	}
}

// Out of descriptors is not the same as no usage.
func TestUnreadableIsAnError(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/memory.current", 0o700); err != nil {
		t.Fatal(err)
	}
	put(t, "usage_usec 1\n", dir, "cpu.stat")
	if _, err := Metrics(map[string]string{"": dir}); !errors.Is(err, unix.EISDIR) {
		t.Errorf("got %v", err)
	}
}

func TestParseMounts(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     map[string]string
	}{
		{"v2", "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n", map[string]string{"": "/sys/fs/cgroup"}},
		{"v1 with v2 beside it", `30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
35 30 0:30 / /mnt/again rw - cgroup cgroup rw,memory
36 30 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
`, map[string]string{"cpu": "/sys/fs/cgroup/cpu,cpuacct", "cpuacct": "/sys/fs/cgroup/cpu,cpuacct", "memory": "/sys/fs/cgroup/memory"}},
		{"blanks", `34 30 0:30 / /my\040cgroups\134x rw - cgroup cgroup rw,pids` + "\n", map[string]string{"pids": `/my cgroups\x`}},
		{"nonsense", "a - cgroup\n\n - \n1 2 3 4 5 - cgroup2\n", map[string]string{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseMounts(strings.NewReader(tt.in))
			if err != nil || !maps.Equal(got, tt.want) {
				t.Errorf("got %v, %v, want %v", got, err, tt.want)
			}
		})
	}
}

func TestPageSize(t *testing.T) {
	for in, want := range map[string]string{"hugepages-64kB": "64KB", "hugepages-2048kB": "2MB", "hugepages-1048576kB": "1GB", "hugepages-kB": "", "2048kB": "", "hugepages-2048": ""} {
		if got, ok := pageSize(in); got != want || ok != (want != "") {
			t.Errorf("%s: got %q", in, got)
		}
	}
}

func FuzzParsers(f *testing.F) {
	if err := filepath.WalkDir("testdata/v1", seed(f)); err != nil {
		f.Fatal(err)
	}
	if err := filepath.WalkDir("testdata/v2", seed(f)); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, m := range []proto.Message{
			&v1.Metrics{Blkio: &v1.BlkIOStat{IoServicedRecursive: parseBlkio(b)}},
			&v2.Metrics{Io: &v2.IOStat{Usage: parseIO(b), PSI: parsePressure(b)}},
		} {
			if _, err := proto.Marshal(m); err != nil && !strings.Contains(err.Error(), "UTF-8") {
				t.Error(err)
			}
		}
		_, _ = parseRDMA(b), devices(b)
		_, _ = parseMounts(strings.NewReader(string(b)))
	})
}

func seed(f *testing.F) func(string, os.DirEntry, error) error {
	return func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		f.Add(b)
		return err
	}
}

func BenchmarkMetrics(b *testing.B) {
	root := "testdata"
	for version, paths := range map[string]map[string]string{"v1": v1Paths(root + "/v1"), "v2": {"": root + "/v2"}} {
		b.Run(version, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Metrics(paths); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
