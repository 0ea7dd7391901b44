package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// Mount implements api.GuestService.
func (g *Guest) Mount(ctx context.Context, r *api.MountRequest) (*api.MountResponse, error) {
	if err := g.take(ctx); err != nil {
		return nil, err
	}
	defer g.pass()
	device, err := g.mount(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("mount disk %s on %s: %w", r.Serial, r.Target, err)
	}
	return &api.MountResponse{Device: device}, nil
}

func (g *Guest) mount(ctx context.Context, r *api.MountRequest) (string, error) {
	if r.Serial == "" || r.Type == "" {
		return "", invalid("serial %q, type %q: both are needed", r.Serial, r.Type)
	}
	done, err := g.isMounted(r.Target, "disk "+r.Serial)
	if err != nil {
		return "", err
	}
	if err := g.modules.Load("virtio_blk", r.Type); err != nil {
		return "", err
	}
	var name string
	err = await(ctx, func() (ok bool, err error) {
		name, err = disk("/sys/block", r.Serial)
		return name != "", err
	})
	if err != nil {
		return "", err
	}
	device := "/dev/" + name // devtmpfs has it before it is announced
	if done {
		return device, nil
	}
	if err := os.MkdirAll(r.Target, 0o755); err != nil {
		return "", err
	}
	var flags uintptr // root file systems are on it: devices and set-user-id programs too
	if r.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount(device, r.Target, r.Type, flags, r.Options); err != nil {
		return "", fmt.Errorf("%s as %s: %w", device, r.Type, err)
	}
	g.mounted[r.Target] = "disk " + r.Serial
	return device, nil
}

// disk finds the block device with a serial number; "" is none.
func disk(dir, serial string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name(), "serial"))
		if errors.Is(err, fs.ErrNotExist) { // no virtio disk, or just unplugged
			continue
		}
		if err == nil && strings.TrimRight(string(b), "\x00\n") == serial {
			return e.Name(), nil
		}
	}
	return "", nil
}

// Unmount implements api.GuestService.
func (g *Guest) Unmount(ctx context.Context, r *api.UnmountRequest) (*api.UnmountResponse, error) {
	if err := g.take(ctx); err != nil {
		return nil, err
	}
	defer g.pass()
	if g.mounted[r.Target] == "" {
		return &api.UnmountResponse{}, nil
	}
	err := unix.Unmount(r.Target, unix.UMOUNT_NOFOLLOW)
	switch err {
	case nil:
	case unix.EBUSY:
		return nil, fmt.Errorf("unmount %s: a container uses it: %w", r.Target, errdefs.ErrFailedPrecondition)
	default:
		return nil, fmt.Errorf("unmount %s: %w", r.Target, err)
	}
	delete(g.mounted, r.Target)
	return &api.UnmountResponse{}, nil
}
