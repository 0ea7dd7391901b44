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
	device, err := g.find(ctx, r.Serial)
	if err == nil && r.Type != "" {
		err = g.mount(device, r)
	}
	var st unix.Stat_t
	if err == nil {
		err = unix.Stat(device, &st)
	}
	if err != nil {
		return nil, fmt.Errorf("disk %s: %w", r.Serial, err)
	}
	return &api.MountResponse{Device: device, Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev)}, nil
}

// find waits for a disk and returns its path.
func (g *Guest) find(ctx context.Context, serial string) (string, error) {
	if serial == "" {
		return "", invalid("it has no serial number")
	}
	if err := g.modules.Load("virtio_blk"); err != nil {
		return "", err
	}
	var name string
	err := await(ctx, func() (ok bool, err error) {
		name, err = disk("/sys/block", serial)
		return name != "", err
	})
	return "/dev/" + name, err // devtmpfs has it before it is announced
}

func (g *Guest) mount(device string, r *api.MountRequest) error {
	done, err := g.isMounted(r.Target, "disk "+r.Serial)
	if done || err != nil {
		return err
	}
	if err := g.modules.Load(r.Type); err != nil {
		return err
	}
	if err := os.MkdirAll(r.Target, 0o755); err != nil {
		return err
	}
	var flags uintptr // root file systems are on it: devices and set-user-id programs too
	if r.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount(device, r.Target, r.Type, flags, r.Options); err != nil {
		return fmt.Errorf("mount %s as %s on %s: %w", device, r.Type, r.Target, err)
	}
	g.mounted[r.Target] = "disk " + r.Serial
	return nil
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
