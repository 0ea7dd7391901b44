package bed

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox/host"
)

// Lab is the environment variable that says that this is the lab's machine.
const Lab = "KUASAR_LAB"

// Systemd says whether beds have systemd make their cgroups. It does so on its
// own terms: from pids and paths that are the machine's, and so a bed has no
// pid and cgroup namespaces. Only the lab's machine, which has nothing else to
// do, is for that.
func Systemd() bool { return os.Getenv(Lab) != "" && host.SystemdRunning() }

// Patience is how long to wait for what takes at most d elsewhere.
func Patience(d time.Duration) time.Duration {
	if os.Getenv(Lab) == "" {
		return d
	}
	const slower = 5
	return slower * d
}

// adopt takes the place of a namespace's pid 1: what is left of a bed's
// processes becomes this one's children.
func adopt() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	return nil
}

// parent is the cgroup parent of a pod, as kubelet names it for the driver.
func parent(pod string) string {
	if !Systemd() {
		return "/kubepods/" + pod
	}
	return "/kubepods.slice/kubepods-" + strings.ReplaceAll(pod, "-", "_") + ".slice"
}
