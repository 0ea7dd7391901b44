package vmm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/devices"
)

// checkDevices finds devices that are this host's alone. Of a container that may
// use all, the guest's agent fills in the guest's.
func checkDevices(l *specs.Linux) error {
	if l == nil || devices.All(l.Resources) {
		return nil
	}
	for _, d := range l.Devices {
		if d.Type != "b" && !devices.Universal(d) {
			return fmt.Errorf("its spec has the device %s (%s %d:%d), which is the host's, and the container is in a virtual machine: %w", d.Path, d.Type, d.Major, d.Minor, errdefs.ErrNotImplemented)
		}
	}
	return nil
}

// blockVolumes gives the guest a container's block volumes, as disks, and rewrites the
// spec: the devices have other numbers there.
func (p *pod) blockVolumes(ctx context.Context, container string, l *specs.Linux) error {
	if l == nil || devices.All(l.Resources) {
		return nil
	}
	renumber := map[[2]int64][2]int64{}
	for i, d := range l.Devices {
		if d.Type != "b" {
			continue
		}
		from := [2]int64{d.Major, d.Minor}
		to, known := renumber[from]
		if !known {
			path, err := hostDevice(d)
			if err != nil {
				return err
			}
			seen, err := p.attach(ctx, newDisk(container, d.Path, path, !writable(l.Resources, d)))
			if errdefs.IsResourceExhausted(err) {
				return fmt.Errorf("block device %s: raise hotplug_slots: %w", d.Path, err)
			}
			if err != nil {
				return fmt.Errorf("block device %s: %w", d.Path, err)
			}
			to = [2]int64{int64(seen.Major), int64(seen.Minor)}
			renumber[from] = to
		}
		l.Devices[i].Major, l.Devices[i].Minor = to[0], to[1]
	}
	if l.Resources != nil {
		l.Resources.Devices = renumbered(l.Resources.Devices, renumber)
	}
	return nil
}

// renumbered are the rules with the guest's numbers, and without those for block
// devices that it has not.
func renumbered(rules []specs.LinuxDeviceCgroup, numbers map[[2]int64][2]int64) []specs.LinuxDeviceCgroup {
	var all []specs.LinuxDeviceCgroup
	for _, r := range rules {
		if r.Type == "b" && r.Major != nil && r.Minor != nil {
			to, known := numbers[[2]int64{*r.Major, *r.Minor}]
			if !known {
				continue
			}
			r.Major, r.Minor = &to[0], &to[1]
		}
		all = append(all, r)
	}
	return all
}

// writable says whether a container may write to a device. The last rule for it
// counts.
func writable(r *specs.LinuxResources, d specs.LinuxDevice) bool {
	if r == nil {
		return true
	}
	for _, rule := range slices.Backward(r.Devices) {
		if rule.Type == d.Type && rule.Major != nil && *rule.Major == d.Major && rule.Minor != nil && *rule.Minor == d.Minor {
			return rule.Allow && strings.Contains(rule.Access, "w")
		}
	}
	return true
}

// hostDevice is the path of a block device on this host: of its spec only the
// numbers are.
func hostDevice(d specs.LinuxDevice) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/uevent", d.Major, d.Minor))
	if err != nil {
		return "", fmt.Errorf("block device %s (%d:%d): the host has none of these numbers: %w: %w", d.Path, d.Major, d.Minor, err, errdefs.ErrFailedPrecondition)
	}
	for line := range strings.Lines(string(b)) {
		name, found := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME=")
		if !found {
			continue
		}
		path := filepath.Join("/dev", name)
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == unix.Mkdev(uint32(d.Major), uint32(d.Minor)) {
			return path, nil
		}
	}
	return "", fmt.Errorf("block device %s (%d:%d) is not in the host's /dev: %w", d.Path, d.Major, d.Minor, errdefs.ErrFailedPrecondition)
}
