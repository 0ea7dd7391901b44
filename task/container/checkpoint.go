package container

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/task/server"
)

// criu is run by libcontainer, which finds it in PATH.
func criu() error {
	if _, err := exec.LookPath("criu"); err != nil {
		return fmt.Errorf("criu is not installed: install it where the agent's PATH finds it: %w", errdefs.ErrNotImplemented)
	}
	return nil
}

// Checkpoint implements server.Checkpointer. opts may be nil.
func (r *Runtime) Checkpoint(_ context.Context, ref server.Ref, path string, opts *options.CheckpointOptions) error {
	if err := r.checkpoint(ref, path, opts); err != nil {
		return fmt.Errorf("checkpoint container %s: %w", ref.ID, err)
	}
	return nil
}

func (r *Runtime) checkpoint(ref server.Ref, path string, opts *options.CheckpointOptions) error {
	if err := criu(); err != nil {
		return err
	}
	empty, err := emptyNamespaces(opts.GetEmptyNamespaces())
	if err != nil {
		return err
	}
	if p := opts.GetParentPath(); filepath.IsAbs(p) {
		return invalid("parent path %s is not relative to the image", p)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	dir, work, err := scratch(ref, opts.GetWorkPath())
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c, err := loadForDump(ref, dir, path)
	if err != nil {
		return err
	}
	return keep(ref, work, "dump.log", c.Checkpoint(&libcontainer.CriuOpts{
		ImagesDirectory:         path,
		WorkDirectory:           work,
		ParentImage:             opts.GetParentPath(),
		LeaveRunning:            !opts.GetExit(),
		TcpEstablished:          opts.GetOpenTcp(),
		ExternalUnixConnections: opts.GetExternalUnixSockets(),
		ShellJob:                opts.GetTerminal(),
		FileLocks:               opts.GetFileLocks(),
		ManageCgroupsMode:       opts.GetCgroupsMode(),
		EmptyNs:                 empty,
		StatusFd:                -1,
	}))
}

// Restore implements server.Checkpointer.
func (r *Runtime) Restore(ctx context.Context, ref server.Ref, p server.Process, path string) (server.Started, error) {
	s, err := r.restore(ctx, ref, p, path)
	if err != nil {
		return server.Started{}, fmt.Errorf("restore container %s: %w", ref.ID, err)
	}
	return s, nil
}

func (r *Runtime) restore(ctx context.Context, ref server.Ref, p server.Process, path string) (server.Started, error) {
	if err := criu(); err != nil {
		return server.Started{}, err
	}
	opts, err := parse(ref.Options)
	if err != nil {
		return server.Started{}, err
	}
	dir, work, err := scratch(ref, opts.CriuWorkPath)
	if err != nil {
		return server.Started{}, err
	}
	defer os.RemoveAll(dir)
	config, err := inherit(p.Spec, path)
	if err != nil {
		return server.Started{}, err
	}
	if config != nil {
		defer config.Close()
	}
	return r.create(ctx, ref, p, func(c *libcontainer.Container, lp *libcontainer.Process) error {
		return keep(ref, work, "restore.log", c.Restore(lp, &libcontainer.CriuOpts{
			ImagesDirectory: path,
			WorkDirectory:   work,
			EmptyNs:         unix.CLONE_NEWNET,
			StatusFd:        -1,
		}))
	})
}

// scratch makes a directory for one use of criu; its working directory is in
// there if the client named none.
func scratch(ref server.Ref, named string) (dir, work string, err error) {
	dir = filepath.Join(ref.Dir, "criu")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", err
	}
	if work = named; work == "" {
		work = filepath.Join(dir, "work")
	}
	return dir, work, nil
}

// keep saves criu's log in the bundle if err is one, as its directory goes.
func keep(ref server.Ref, work, name string, err error) error {
	if err == nil {
		return nil
	}
	to := filepath.Join(ref.Bundle, "criu-"+name)
	if merr := os.Rename(filepath.Join(work, name), to); merr != nil {
		return class(err) // criu did not get as far as a log
	}
	return fmt.Errorf("%w: see %s", class(err), to)
}

// emptyNamespaces are those that are made anew instead of restored. The
// network always is: whoever made the sandbox configures it.
func emptyNamespaces(names []string) (uint32, error) {
	for _, n := range names {
		if specs.LinuxNamespaceType(n) != specs.NetworkNamespace {
			return 0, invalid("namespace %q cannot be left empty in a checkpoint, only network", n)
		}
	}
	return unix.CLONE_NEWNET, nil
}
