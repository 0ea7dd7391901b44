package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
)

var (
	fpBundle  = failpoint.New("host/bundle/dir")
	fpRootfs  = failpoint.New("host/bundle/rootfs")
	fpSpec    = failpoint.New("host/bundle/spec")
	fpUnmount = failpoint.New("host/bundle/unmount")
)

// Bundle is where the container's OCI bundle is.
func Bundle(dir, id string) string { return filepath.Join(dir, "containers", id) }

// MakeBundle mounts rootfs and writes the bundle. s.Root.Path is replaced if
// there are mounts; without any it must be absolute. user is the pod's user
// namespace, whose root must get through to the rootfs; it may be nil. On error
// nothing is left.
func MakeBundle(ctx context.Context, dir, id string, s *specs.Spec, rootfs []mount.Mount, user *IDMap) (path string, err error) {
	return MakeBundleSeen(ctx, dir, dir, id, s, rootfs, user)
}

// MakeBundleSeen is MakeBundle for an agent that has dir at seen: s.Root.Path
// becomes what that agent sees.
func MakeBundleSeen(ctx context.Context, dir, seen, id string, s *specs.Spec, rootfs []mount.Mount, user *IDMap) (path string, err error) {
	if err := identifiers.Validate(id); err != nil {
		return "", err
	}
	if s.Root == nil {
		return "", invalid("container %s: the spec has no root", id)
	}
	if len(rootfs) == 0 && !filepath.IsAbs(s.Root.Path) {
		return "", invalid("container %s has no rootfs: its spec says %q and it came without mounts: make it from an image or give an absolute path", id, s.Root.Path)
	}
	path = Bundle(dir, id)
	if err := makeDir(path, user); err != nil {
		return "", fmt.Errorf("make bundle of container %s: %w", id, err)
	}
	fpBundle.Hit()
	defer func() {
		if err != nil {
			err = errors.Join(err, RemoveBundle(dir, id))
		}
	}()
	if len(rootfs) > 0 {
		s.Root.Path = filepath.Join(Bundle(seen, id), "rootfs")
		target := filepath.Join(path, "rootfs")
		if err := os.Mkdir(target, 0o711); err != nil {
			return "", fmt.Errorf("make bundle of container %s: %w", id, err)
		}
		if err := mount.All(rootfs, target); err != nil {
			return "", fmt.Errorf("mount the rootfs of container %s: %w", id, err)
		}
		fpRootfs.Hit()
	}
	b, err := json.Marshal(s)
	if err != nil {
		return "", fmt.Errorf("encode spec of container %s: %w", id, err)
	}
	if err := os.WriteFile(filepath.Join(path, "config.json"), b, 0o600); err != nil {
		return "", fmt.Errorf("make bundle of container %s: %w", id, err)
	}
	fpSpec.Hit()
	return path, nil
}

// makeDir lets nobody but root in, and root of the container's user namespace
// through.
func makeDir(path string, user *IDMap) error {
	parent := filepath.Dir(path)
	if err := os.Mkdir(parent, 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%w: %w", err, errdefs.ErrAlreadyExists)
		}
		return err
	}
	if user == nil {
		return nil
	}
	_, gid := user.Root()
	if err := errors.Join(os.Chown(path, -1, gid), os.Chmod(path, 0o710)); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// RemoveBundle undoes MakeBundle, also one that crashed anywhere. Idempotent;
// an unknown id is no error.
func RemoveBundle(dir, id string) error {
	if err := identifiers.Validate(id); err != nil {
		return err
	}
	path := Bundle(dir, id)
	rootfs := filepath.Join(path, "rootfs")
	if err := Unmount(rootfs); err != nil {
		return fmt.Errorf("release rootfs of container %s: %w", id, err)
	}
	fpUnmount.Hit()
	// Removing only an empty directory, nothing is ever deleted through a
	// mount that stayed.
	if err := os.Remove(rootfs); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("release rootfs of container %s: %w", id, err)
	}
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("remove bundle of container %s: %w", id, err)
	}
	return nil
}

// Bundles are the ids of the containers that have a bundle.
func Bundles(dir string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(dir, "containers"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	ids := make([]string, 0, len(entries))
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids, nil
}
