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
	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

var (
	fpDiskNoted   = failpoint.New("vmm/disk/noted")
	fpDiskPlugged = failpoint.New("vmm/disk/plugged")
	fpDiskMounted = failpoint.New("vmm/disk/mounted")
	fpDiskOut     = failpoint.New("vmm/disk/unplugged")
)

const (
	// disksDir has a directory for each container with disks, and in it a file
	// for each disk, from before it is plugged until after it is not.
	disksDir = "disks"

	// disksSeen is where the guest mounts those that are root file systems.
	disksSeen = "/run/kuasar/disks"
)

// disk is a block device or an image of a container's, which its machine gets.
// Its bytes pass no file system of the host's, and no share daemon.
type disk struct {
	Disk
	container string
	mount     *api.MountRequest
}

// newDisk is one of the disks of a container, by its use. Its name is short
// enough for a virtio disk's serial number, of 20 bytes.
func newDisk(container, use, path string, readOnly bool) disk {
	sum := sha256.Sum256([]byte(container + "/" + use))
	id := "disk-" + hex.EncodeToString(sum[:7])
	return disk{Disk{ID: id, Path: path, ReadOnly: readOnly}, container, &api.MountRequest{Serial: id}}
}

// filesystems are those that the guest's kernel has modules for.
var filesystems = []string{"ext4", "erofs"}

// diskOf says whether a container's root file system is one disk, as it is with
// a snapshotter that has block devices or images.
func diskOf(container string, rootfs []mount.Mount) (disk, bool) {
	if len(rootfs) != 1 || rootfs[0].Target != "" || !slices.Contains(filesystems, rootfs[0].Type) {
		return disk{}, false
	}
	m := rootfs[0]
	info, err := os.Stat(m.Source)
	if err != nil || !isBlock(info.Mode()) && !info.Mode().IsRegular() {
		return disk{}, false
	}
	readOnly := m.Type == "erofs"
	var options []string
	for _, o := range m.Options {
		switch o {
		case "loop", "rw":
		case "ro":
			readOnly = true
		default:
			options = append(options, o)
		}
	}
	d := newDisk(container, "root", m.Source, readOnly)
	d.mount.Type, d.mount.Target = m.Type, diskTarget(container)
	d.mount.ReadOnly, d.mount.Options = readOnly, strings.Join(options, ",")
	return d, true
}

func isBlock(mode fs.FileMode) bool {
	return mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0
}

func diskTarget(container string) string { return filepath.Join(disksSeen, container) }

// attach gives the guest a disk, and mounts it if it is to be. It is
// errdefs.ErrResourceExhausted, and nothing has been done, if the machine has no
// slot for it.
func (p *pod) attach(ctx context.Context, d disk) (_ *api.MountResponse, err error) {
	ctx, span := trace.Start(ctx, "vmm.disk")
	defer span.End(&err)
	plugger, ok := p.controls().(DiskPlugger)
	if !ok {
		return nil, fmt.Errorf("%s takes no disks while it runs: %w", p.opts.Hypervisor, errdefs.ErrResourceExhausted)
	}
	if err := p.noteDisk(d); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			ctx, cancel := undoing(ctx)
			defer cancel()
			err = errors.Join(err, p.detach(ctx, d.container, d.ID))
		}
	}()
	fpDiskNoted.Hit()
	if err := plugger.PlugDisk(ctx, d.Disk); err != nil {
		return nil, err
	}
	fpDiskPlugged.Hit()
	c, err := p.connect(ctx)
	if err != nil {
		return nil, err
	}
	seen, err := c.Guest().Mount(ctx, d.mount)
	if err != nil {
		return nil, fmt.Errorf("guest: %w", errgrpc.ToNative(err))
	}
	fpDiskMounted.Hit()
	return seen, nil
}

// detachAll takes away what a container has. Idempotent; a container without
// disks is no error.
func (p *pod) detachAll(ctx context.Context, container string) error {
	dir := p.disks(container)
	notes, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, note := range notes {
		if err := p.detach(ctx, container, note.Name()); err != nil {
			return err
		}
	}
	return os.Remove(dir)
}

// detach undoes attach, however far it came.
func (p *pod) detach(ctx context.Context, container, id string) error {
	if p.running() == nil { // else it went with the machine
		if err := p.unplug(ctx, container, id); err != nil && p.running() == nil {
			return fmt.Errorf("take disk %s of container %s from the guest: %w", id, container, err)
		}
	}
	fpDiskOut.Hit()
	return os.Remove(filepath.Join(p.disks(container), id))
}

func (p *pod) unplug(ctx context.Context, container, id string) error {
	c, err := p.connect(ctx)
	if err != nil {
		return err
	}
	if id == newDisk(container, "root", "", false).ID {
		if _, err := c.Guest().Unmount(ctx, &api.UnmountRequest{Target: diskTarget(container)}); err != nil {
			return fmt.Errorf("guest: %w", errgrpc.ToNative(err))
		}
	}
	plugger, ok := p.controls().(DiskPlugger)
	if !ok {
		return nil
	}
	if err := plugger.UnplugDisk(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

func (p *pod) disks(container string) string { return filepath.Join(p.dir, disksDir, container) }

func (p *pod) noteDisk(d disk) error {
	dir := p.disks(d.container)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, d.ID), nil, 0o600)
}

// root finds out how the guest gets a container's root file system. It returns
// what the host is to mount in the share: nothing if the guest has it as a disk.
func (p *pod) root(ctx context.Context, container string, rootfs []mount.Mount) (_ []mount.Mount, seen string, err error) {
	d, ok := diskOf(container, rootfs)
	if !ok {
		return rootfs, "", nil
	}
	_, err = p.attach(ctx, d)
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
