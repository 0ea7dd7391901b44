package bed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// leakTimeout is how long processes may take to end after the call that
// removed their pod has returned: a shim ends after it has answered.
const leakTimeout = 5 * time.Second

// Leaks lists what is left of pods once all are removed: processes, mounts,
// network namespaces, taps, links, filters, cgroups and files. The daemon and the
// node's worker are no leaks. It is meaningful only in an isolated process.
func (b *Bed) Leaks(ctx context.Context) ([]string, error) {
	processes, err := b.leakedProcesses(ctx)
	if err != nil {
		return nil, err
	}
	leaks := processes
	for _, look := range []func(context.Context) ([]string, error){
		b.leakedMounts, b.leakedLinks, b.leakedNamespaces, b.leakedGroups, b.leakedFiles, b.leakedObjects,
	} {
		found, err := look(ctx)
		if err != nil {
			return nil, fmt.Errorf("look for leaks: %w", err)
		}
		leaks = append(leaks, found...)
	}
	return leaks, nil
}

func (b *Bed) leakedProcesses(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, leakTimeout)
	defer cancel()
	all, err := Processes()
	if err != nil {
		return nil, err
	}
	var leaks []string
	for _, p := range below(all, os.Getppid()) {
		if p.Pid == os.Getpid() || p.Parent == os.Getpid() || p.isWorker() {
			continue
		}
		if err := AwaitExit(ctx, p.Pid); err != nil {
			leaks = append(leaks, "process "+p.String())
		}
	}
	return leaks, nil
}

// below are those processes that come from another one: of a bed all but its
// first.
func below(all []Process, first int) []Process {
	parents := make(map[int]int, len(all))
	for _, p := range all {
		parents[p.Pid] = p.Parent
	}
	return slices.DeleteFunc(all, func(p Process) bool {
		pid := p.Parent
		for pid > 0 && pid != first {
			pid = parents[pid]
		}
		return pid != first
	})
}

func (b *Bed) leakedMounts(context.Context) ([]string, error) {
	points, err := b.mounts()
	if err != nil {
		return nil, err
	}
	var leaks []string
	for _, point := range points {
		leaks = append(leaks, "mount "+point)
	}
	return leaks, nil
}

// mounts lists the mount points below the bed's directory, the last first.
func (b *Bed) mounts() ([]string, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], b.Dir+"/") {
			points = append(points, fields[4])
		}
	}
	slices.Reverse(points)
	return points, nil
}

func (b *Bed) leakedLinks(context.Context) ([]string, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var leaks []string
	for _, link := range links {
		if link.Name != "lo" && link.Name != bridge {
			leaks = append(leaks, "link "+link.Name)
		}
	}
	// What is redirected to a machine is so in its pod's namespace, never here.
	qdiscs, err := netlink.QdiscList(nil)
	if err != nil {
		return nil, err
	}
	for _, q := range qdiscs {
		if q.Type() == "clsact" || q.Type() == "ingress" {
			leaks = append(leaks, "qdisc "+q.Type()+" of link "+strconv.Itoa(q.Attrs().LinkIndex))
		}
	}
	return leaks, nil
}

// leakedNamespaces lists network namespaces that outlive their pods: somebody
// has them open, or a tap in them.
func (b *Bed) leakedNamespaces(context.Context) ([]string, error) {
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return nil, err
	}
	all, err := Processes()
	if err != nil {
		return nil, err
	}
	var leaks []string
	for _, p := range all {
		ns, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(p.Pid), "ns/net"))
		if err == nil && ns != own {
			leaks = append(leaks, "network namespace of process "+p.String())
		}
		fds, _ := os.ReadDir(filepath.Join("/proc", strconv.Itoa(p.Pid), "fd"))
		for _, fd := range fds {
			path, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(p.Pid), "fd", fd.Name()))
			if err == nil && (path == "/dev/net/tun" || strings.HasPrefix(path, "net:[") && path != own) {
				leaks = append(leaks, path+" of process "+p.String())
			}
		}
	}
	return leaks, nil
}

// id is in the name of every cgroup that belongs to a pod or a container. What
// has none is the parent that kubelet would own: pods may leave it.
var id = regexp.MustCompile("[0-9a-f]{64}")

func (b *Bed) leakedGroups(context.Context) ([]string, error) {
	all, err := groups()
	if err != nil {
		return nil, err
	}
	var leaks []string
	for _, group := range all {
		if id.MatchString(filepath.Base(group)) {
			leaks = append(leaks, "cgroup "+group)
		}
	}
	return leaks, nil
}

// groups lists the cgroups that exist below this namespace's root, in all
// hierarchies.
func groups() ([]string, error) {
	all, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var groups []string
	for _, h := range all {
		err := eachGroup(h.path, func(dir string) error {
			if dir != h.path && dir != filepath.Join(h.path, "init") {
				groups = append(groups, dir)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return groups, nil
}

// homes are directories that hold one entry per pod or container.
var homes = []string{
	"s/io.containerd.runtime.v2.task/k8s.io",
	"r/io.containerd.runtime.v2.task/k8s.io",
	"s/io.containerd.grpc.v1.cri/sandboxes",
	"r/io.containerd.grpc.v1.cri/sandboxes",
	"s/io.containerd.grpc.v1.cri/containers",
	"r/io.containerd.grpc.v1.cri/containers",
	"s/io.containerd.grpc.v1.cri/netns",
	"s/kuasar/runc",
	"s/kuasar/vmm",
	"s/kuasar/wasm",
	"s/kuasar/tasks/k8s.io",
	"s/kuasar/worker/containers/k8s.io",
	"shim/s",
	"ipam/bed",
}

func (b *Bed) leakedFiles(context.Context) ([]string, error) {
	var leaks []string
	for _, home := range homes {
		entries, err := os.ReadDir(filepath.Join(b.Dir, home))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, entry := range entries {
			if home == "ipam/bed" && (entry.Name() == "lock" || strings.HasPrefix(entry.Name(), "last_reserved_ip")) {
				continue
			}
			leaks = append(leaks, "file "+filepath.Join(home, entry.Name()))
		}
	}
	return leaks, nil
}

// leakedObjects looks into containerd's database.
func (b *Bed) leakedObjects(ctx context.Context) ([]string, error) {
	client, err := b.Client()
	if err != nil {
		return nil, err
	}
	ctx = namespaces.WithNamespace(ctx, Namespace)
	var leaks []string
	containers, err := client.ContainerService().List(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range containers {
		leaks = append(leaks, "container "+c.ID)
	}
	sandboxes, err := client.SandboxStore().List(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range sandboxes {
		leaks = append(leaks, "sandbox "+s.ID)
	}
	err = client.SnapshotService("overlayfs").Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindActive {
			leaks = append(leaks, "snapshot "+info.Name)
		}
		return nil
	})
	return leaks, err
}

// sweep removes what is left of the bed by force, whoever should have done
// so: its processes, mounts, and the bridge.
func (b *Bed) sweep() error {
	all, err := Processes()
	errs := []error{err}
	ctx, cancel := context.WithTimeout(context.Background(), leakTimeout)
	defer cancel()
	for _, p := range all {
		if p.Pid == os.Getpid() || !p.of(b) {
			continue
		}
		if err := syscall.Kill(p.Pid, syscall.SIGKILL); err == nil {
			errs = append(errs, AwaitExit(ctx, p.Pid))
		}
	}
	points, err := b.mounts()
	errs = append(errs, err)
	for _, point := range points {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
		}
	}
	if link, err := netlink.LinkByName(bridge); err == nil {
		errs = append(errs, netlink.LinkDel(link))
	}
	return errors.Join(errs...)
}
