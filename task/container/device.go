package container

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/devices"
	"github.com/containerd-kuasar/containerd-kuasar/task/server"
)

// Machine is a Runtime in a virtual machine. Containers that may use all devices
// have the machine's, of which the host cannot know the names and numbers.
type Machine struct{ *Runtime }

// Create implements server.Runtime.
func (m Machine) Create(ctx context.Context, ref server.Ref, p server.Process) (server.Started, error) {
	if err := addDevices(p.Spec.Linux); err != nil {
		return server.Started{}, fmt.Errorf("create container %s: %w", ref.ID, err)
	}
	return m.Runtime.Create(ctx, ref, p)
}

func addDevices(l *specs.Linux) error {
	if l == nil || !devices.All(l.Resources) {
		return nil
	}
	l.Devices = nil
	err := filepath.WalkDir("/dev", func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && slices.Contains(private, path):
			return fs.SkipDir
		case e.Type()&fs.ModeDevice == 0 || slices.Contains(private, path):
			return nil
		}
		d, err := node(path)
		if err == nil {
			l.Devices = append(l.Devices, d)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("list the machine's devices: %w", err)
	}
	return nil
}

// private are what a container has its own of.
var private = []string{"/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console", "/dev/ptmx"}

func node(path string) (d specs.LinuxDevice, err error) {
	var s unix.Stat_t
	if err := unix.Lstat(path, &s); err != nil {
		return d, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	mode := fs.FileMode(s.Mode & 0o7777)
	d = specs.LinuxDevice{
		Path: path, Type: "c", Major: int64(unix.Major(s.Rdev)), Minor: int64(unix.Minor(s.Rdev)),
		FileMode: &mode, UID: &s.Uid, GID: &s.Gid,
	}
	if s.Mode&unix.S_IFMT == unix.S_IFBLK {
		d.Type = "b"
	}
	return d, nil
}
