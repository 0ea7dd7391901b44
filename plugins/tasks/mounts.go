package tasks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
)

// activate has the mount manager do what a plain mount cannot, and returns
// the mounts that are left to do.
func (r *Runtime) activate(ctx context.Context, id string, rootfs []mount.Mount) ([]mount.Mount, error) {
	if r.cfg.Mounts == nil {
		return rootfs, nil
	}
	info, err := r.cfg.Mounts.Activate(ctx, id, rootfs, mount.WithLabels(map[string]string{
		"containerd.io/gc.bref.container": id, // lives as long as the container
	}))
	switch {
	case err == nil:
		return info.System, nil
	case errdefs.IsAlreadyExists(err):
		info, err := r.cfg.Mounts.Info(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("look up active mounts of %s: %w", id, err)
		}
		return info.System, nil
	case errdefs.IsNotImplemented(err): // it has nothing to do
		return rootfs, nil
	}
	return nil, fmt.Errorf("activate mounts of %s: %w", id, err)
}

// deactivate undoes activate. Idempotent.
func (r *Runtime) deactivate(ctx context.Context, id string) error {
	if r.cfg.Mounts == nil {
		return nil
	}
	if err := r.cfg.Mounts.Deactivate(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("deactivate mounts of %s: %w", id, err)
	}
	return nil
}

// rootfsDiff is what CRI's checkpoint has of a container's files, beside the
// directory of its image (checkpointctl's RootFsDiffTar).
const rootfsDiff = "rootfs-diff.tar"

// unpack puts the files of a CRI checkpoint into the rootfs of the container
// that is made from it. There may be none.
func unpack(ctx context.Context, image, rootfs string) error {
	path := filepath.Join(filepath.Dir(image), rootfsDiff)
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("restore files of the checkpoint: %w", err)
	}
	defer f.Close()
	if rootfs == "" {
		return fmt.Errorf("restore files of the checkpoint %s: the sandbox has no rootfs on this host: %w", path, errdefs.ErrNotImplemented)
	}
	tar, err := compression.DecompressStream(f)
	if err != nil {
		return fmt.Errorf("restore files of the checkpoint %s: %w", path, err)
	}
	defer tar.Close()
	if _, err := archive.Apply(ctx, rootfs, tar); err != nil {
		return fmt.Errorf("restore files of the checkpoint %s: %w", path, err)
	}
	return nil
}
