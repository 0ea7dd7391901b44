package vmm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

var (
	fpDiskNoted   = failpoint.New("vmm/disk/noted")
	fpDiskPlugged = failpoint.New("vmm/disk/plugged")
	fpDiskMounted = failpoint.New("vmm/disk/mounted")
	fpDiskOut     = failpoint.New("vmm/disk/unplugged")
)

const (
	// disksDir has a file for each container whose root file system is a disk,
	// from before it is plugged until after it is not.
	disksDir = "disks"

	// disksSeen is where the guest mounts them.
	disksSeen = "/run/kuasar/disks"
)

// disk is a root file system that the guest mounts itself: of a snapshotter that
// has block devices, or images of file systems. Its bytes pass no file system of
// the host's, and no share daemon.
type disk struct {
	Disk
	mount *api.MountRequest
}

// filesystems are those that the guest's kernel has modules for.
var filesystems = []string{"ext4", "erofs"}

// diskOf says whether a container's root file system is one disk.
func diskOf(container string, rootfs []mount.Mount) (disk, bool) {
	if len(rootfs) != 1 || rootfs[0].Target != "" || !slices.Contains(filesystems, rootfs[0].Type) {
		return disk{}, false
	}
	m := rootfs[0]
	info, err := os.Stat(m.Source)
	block := err == nil && info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0
	if err != nil || !block && !info.Mode().IsRegular() {
		return disk{}, false
	}
	d := disk{Disk{ID: diskID(container), Path: m.Source}, &api.MountRequest{Type: m.Type, Target: diskTarget(container)}}
	d.mount.Serial = d.ID
	var options []string
	for _, o := range m.Options {
		switch o {
		case "loop", "rw":
		case "ro":
			d.ReadOnly, d.mount.ReadOnly = true, true
		default:
			options = append(options, o)
		}
	}
	d.ReadOnly = d.ReadOnly || m.Type == "erofs"
	d.mount.ReadOnly = d.ReadOnly
	d.mount.Options = strings.Join(options, ",")
	return d, true
}

// diskID is short enough for a virtio disk's serial number, of 20 bytes.
func diskID(container string) string {
	sum := sha256.Sum256([]byte(container))
	return "root-" + hex.EncodeToString(sum[:7])
}

func diskTarget(container string) string { return filepath.Join(disksSeen, container) }

// attach gives the guest a disk, mounted. It is errdefs.ErrResourceExhausted, and
// nothing has been done, if the machine has no slot for it.
func (p *pod) attach(ctx context.Context, container string, d disk) (err error) {
	plugger, ok := p.controls().(DiskPlugger)
	if !ok {
		return fmt.Errorf("%s takes no disks while it runs: %w", p.opts.Hypervisor, errdefs.ErrResourceExhausted)
	}
	if err := p.noteDisk(container); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.detach(context.WithoutCancel(ctx), container))
		}
	}()
	fpDiskNoted.Hit()
	if err := plugger.PlugDisk(ctx, d.Disk); err != nil {
		return err
	}
	fpDiskPlugged.Hit()
	c, err := p.connect(ctx)
	if err != nil {
		return err
	}
	if _, err := c.Guest().Mount(ctx, d.mount); err != nil {
		return fmt.Errorf("guest: %w", errgrpc.ToNative(err))
	}
	fpDiskMounted.Hit()
	return nil
}

// detach undoes attach, however far it came. Idempotent; a container without a
// disk is no error.
func (p *pod) detach(ctx context.Context, container string) error {
	note := filepath.Join(p.dir, disksDir, container)
	if _, err := os.Stat(note); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if p.running() == nil { // else it went with the machine
		if err := p.unplug(ctx, container); err != nil && p.running() == nil {
			return fmt.Errorf("take the disk of container %s from the guest: %w", container, err)
		}
	}
	fpDiskOut.Hit()
	return os.Remove(note)
}

func (p *pod) unplug(ctx context.Context, container string) error {
	c, err := p.connect(ctx)
	if err != nil {
		return err
	}
	if _, err := c.Guest().Unmount(ctx, &api.UnmountRequest{Target: diskTarget(container)}); err != nil {
		return fmt.Errorf("guest: %w", errgrpc.ToNative(err))
	}
	plugger, ok := p.controls().(DiskPlugger)
	if !ok {
		return nil
	}
	if err := plugger.UnplugDisk(ctx, diskID(container)); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

func (p *pod) noteDisk(container string) error {
	dir := filepath.Join(p.dir, disksDir)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.WriteFile(filepath.Join(dir, container), nil, 0o600)
}

// root finds out how the guest gets a container's root file system. It returns
// what the host is to mount in the share: nothing if the guest has it as a disk.
func (p *pod) root(ctx context.Context, container string, rootfs []mount.Mount) (_ []mount.Mount, seen string, err error) {
	d, ok := diskOf(container, rootfs)
	if !ok {
		return rootfs, "", nil
	}
	err = p.attach(ctx, container, d)
	if errdefs.IsResourceExhausted(err) {
		log.G(ctx).WithField("container", container).WithError(err).
			Info("the root file system is shared with the guest by the host: more hotplug_slots make it a disk")
		return rootfs, "", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("root file system on %s: %w", d.Path, err)
	}
	return nil, d.mount.Target, nil
}
