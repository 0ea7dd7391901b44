package vmmtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/vmm"
)

// slot i of a machine is taken when there is a file of this name beside its
// vsock, with the disk's id: it is there after a restart, too.
func (m machine) slot(i int) string {
	return filepath.Join(filepath.Dir(m.path), fmt.Sprint("slot-", i))
}

// PlugDisk implements vmm.DiskPlugger.
func (m machine) PlugDisk(_ context.Context, d vmm.Disk) error {
	if _, err := os.Stat(d.Path); err != nil {
		return err
	}
	free := ""
	for i := range m.config.Slots {
		id, err := os.ReadFile(m.slot(i))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			free = m.slot(i)
		case err != nil:
			return err
		case string(id) == d.ID:
			return fmt.Errorf("disk %s: %w", d.ID, errdefs.ErrAlreadyExists)
		}
	}
	if free == "" {
		return fmt.Errorf("disk %s: no slot is free: %w", d.ID, errdefs.ErrResourceExhausted)
	}
	return os.WriteFile(free, []byte(d.ID), 0o600)
}

// UnplugDisk implements vmm.DiskPlugger.
func (m machine) UnplugDisk(_ context.Context, id string) error {
	for i := range m.config.Slots {
		if found, err := os.ReadFile(m.slot(i)); err == nil && string(found) == id {
			return os.Remove(m.slot(i))
		}
	}
	return fmt.Errorf("disk %s: %w", id, errdefs.ErrNotFound)
}

func (setter) Mount(context.Context, *api.MountRequest) (*api.MountResponse, error) {
	return &api.MountResponse{}, nil
}

func (setter) Unmount(context.Context, *api.UnmountRequest) (*api.UnmountResponse, error) {
	return &api.UnmountResponse{}, nil
}
