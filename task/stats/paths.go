package stats

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
)

// controllers of v1 that have metrics. cpuset has none, for one.
var controllers = []string{"cpu", "cpuacct", "memory", "pids", "blkio", "hugetlb", "rdma"}

// Pod is Metrics of a cgroup by its path below the mounts of cgroups, such as
// "/kubepods/burstable/pod…", with systemd "/kubepods.slice/…/….slice".
func Pod(cgroup string) (typeurl.Any, error) {
	paths, err := find(cgroup)
	if err != nil {
		return nil, err
	}
	return Metrics(paths)
}

// Paths are the directories of a cgroup on this host, as Metrics takes them:
// those of the controllers that have metrics. A cgroup without any is
// errdefs.ErrNotFound.
func Paths(cgroup string) (map[string]string, error) {
	paths, err := find(cgroup)
	if err != nil {
		return nil, err
	}
	for controller, dir := range paths {
		if _, err := os.Stat(dir); err != nil {
			delete(paths, controller)
		}
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("find cgroup %s: %w", cgroup, errdefs.ErrNotFound)
	}
	return paths, nil
}

// find does not look whether they exist.
func find(cgroup string) (map[string]string, error) {
	if !filepath.IsAbs(cgroup) || slices.Contains(strings.Split(cgroup, "/"), "..") {
		return nil, fmt.Errorf("find cgroup %q: it is no absolute path without \"..\": %w", cgroup, errdefs.ErrInvalidArgument)
	}
	mounts, err := mounted()
	if err != nil {
		return nil, fmt.Errorf("find cgroup %s: %w", cgroup, err)
	}
	paths := make(map[string]string, len(mounts))
	for controller, mount := range mounts {
		paths[controller] = filepath.Join(mount, cgroup)
	}
	return paths, nil
}

// mounted says where the hierarchies of cgroups are: of v1 by controller, of
// v2 under "". v2 beside v1 is left out, since the controllers are in v1.
var mounted = sync.OnceValues(func() (map[string]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	mounts, err := parseMounts(f)
	if err == nil && len(mounts) == 0 {
		err = fmt.Errorf("no cgroups are mounted: %w", errdefs.ErrFailedPrecondition)
	}
	return mounts, err
})

// parseMounts reads proc_pid_mountinfo(5). The first mount of a hierarchy
// counts.
func parseMounts(r io.Reader) (map[string]string, error) {
	v1, v2 := map[string]string{}, ""
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20) // overlay mounts have long options
	for lines.Scan() {
		mount, rest, ok := strings.Cut(lines.Text(), " - ")
		fields, super := strings.Fields(mount), strings.Fields(rest)
		if !ok || len(fields) < 5 || len(super) < 3 {
			continue
		}
		point := unescape(fields[4])
		switch super[0] {
		case "cgroup2":
			if v2 == "" {
				v2 = point
			}
		case "cgroup":
			for _, option := range strings.Split(super[2], ",") {
				if _, known := v1[option]; !known && slices.Contains(controllers, option) {
					v1[option] = point
				}
			}
		}
	}
	if len(v1) == 0 && v2 != "" {
		v1[""] = v2
	}
	return v1, lines.Err()
}

// unescape undoes what the kernel does to blanks in mount points.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace
