package host

import (
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"

	"github.com/containerd-kuasar/containerd-kuasar/task/stats"
)

// CgroupPath is the OCI cgroupsPath of a container, or of the sandbox itself,
// below the pod's cgroup parent. As containerd's CRI has it: a parent that is a
// slice calls for systemd's form.
func CgroupPath(parent, id string) string {
	if slice := path.Base(parent); strings.HasSuffix(slice, ".slice") {
		return slice + ":cri-containerd:" + id
	}
	return path.Join(parent, id)
}

// Cgroup is the cgroupsPath that a container's driver takes in place of path,
// which the client chose without knowing the driver, or left empty.
func Cgroup(path, id string, systemd bool) string {
	parts := strings.Split(path, ":")
	switch {
	case systemd && len(parts) == 3, !systemd && len(parts) != 3 && path != "":
		return path
	case systemd:
		return "system.slice:kuasar:" + id
	case len(parts) == 3: // the directory that systemd would have made
		return expand(parts[0]) + "/" + parts[1] + "-" + parts[2] + ".scope"
	default:
		return "/kuasar/" + id
	}
}

// Stats are the metrics of the pod's cgroup, which the client made: the sum of
// all its containers. See stats.Pod. A pod may be without one; that this is
// errdefs.ErrNotFound lets CRI list the others' all the same.
func Stats(parent string) (typeurl.Any, error) {
	if parent == "" {
		return nil, fmt.Errorf("the pod has no cgroup parent, and so no cgroup that sums up its containers: %w", errdefs.ErrNotFound)
	}
	return stats.Pod(expand(parent))
}

// expand turns the name of a slice into its path: a-b.slice is in a.slice
// (systemd.slice(5)). A path is one already.
func expand(parent string) string {
	name, ok := strings.CutSuffix(parent, ".slice")
	if !ok || strings.Contains(parent, "/") {
		return parent
	}
	full, prefix := "", ""
	for part := range strings.SplitSeq(name, "-") {
		prefix += part
		full += "/" + prefix + ".slice"
		prefix += "-"
	}
	return full
}

// SystemdRunning is sd_booted(3).
func SystemdRunning() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}
