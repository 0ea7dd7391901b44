package container

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/task/server"
)

var (
	fpCgroup = failpoint.New("container/create/cgroup")
	fpInit   = failpoint.New("container/create/init")
)

// Create implements server.Runtime.
func (r *Runtime) Create(ctx context.Context, ref server.Ref, p server.Process) (server.Started, error) {
	return r.create(ctx, ref, p, (*libcontainer.Container).Start)
}

// starter is what libcontainer does with a process.
type starter func(*libcontainer.Container, *libcontainer.Process) error

func (r *Runtime) create(ctx context.Context, ref server.Ref, p server.Process, start starter) (server.Started, error) {
	c, err := prepare(ref, p.Spec)
	if err != nil {
		return server.Started{}, fmt.Errorf("create container %s: %w", ref.ID, err)
	}
	s, err := r.launch(c, ref, p, p.Spec.Process, start)
	if err != nil {
		err = fmt.Errorf("create container %s: %w", ref.ID, err)
		if derr := r.Delete(context.WithoutCancel(ctx), ref); derr != nil {
			err = fmt.Errorf("%w; %w", err, derr)
		}
		return server.Started{}, err
	}
	return s, nil
}

// prepare makes the container without a process and notes its cgroup, which
// libcontainer makes before it writes down where.
func prepare(ref server.Ref, spec *specs.Spec) (*libcontainer.Container, error) {
	opts, err := parse(ref.Options)
	if err != nil {
		return nil, err
	}
	cfg, err := config(ref, spec, opts)
	if err != nil {
		return nil, err
	}
	c, err := libcontainer.Create(ref.Dir, ref.ID, cfg)
	if err != nil {
		return nil, class(err)
	}
	if err := saveGroup(ref, c); err != nil {
		return nil, errors.Join(err, os.RemoveAll(state(ref)))
	}
	fpCgroup.Hit()
	return c, nil
}

// Exec implements server.Runtime.
func (r *Runtime) Exec(_ context.Context, ref server.Ref, p server.Process) (server.Started, error) {
	c, err := load(ref)
	if err != nil {
		return server.Started{}, err
	}
	s, err := r.launch(c, ref, p, p.Exec, (*libcontainer.Container).Start)
	if err != nil {
		return server.Started{}, fmt.Errorf("exec in container %s: %w", ref.ID, err)
	}
	return s, nil
}

// launch starts one process. It is a child of ours; libcontainer waits for the
// ones in between.
func (r *Runtime) launch(c *libcontainer.Container, ref server.Ref, p server.Process, spec *specs.Process, start starter) (_ server.Started, err error) {
	lp, err := process(spec)
	if err != nil {
		return server.Started{}, err
	}
	lp.Init = p.Exec == nil
	var tty *console
	if p.Terminal {
		if tty, err = newConsole(); err != nil {
			return server.Started{}, err
		}
		defer tty.Close()
		lp.ConsoleSocket = tty.child
	} else {
		if err := own(c, ref, p); err != nil {
			return server.Started{}, err
		}
		lp.Stdin, lp.Stdout, lp.Stderr = p.Stdin, p.Stdout, p.Stderr
	}
	if err := start(c, lp); err != nil {
		return server.Started{}, class(err)
	}
	fpInit.Hit()
	pid, err := lp.Pid()
	if err != nil {
		return server.Started{}, err
	}
	s := server.Started{Pid: pid}
	if tty != nil {
		if s.Master, err = tty.master(); err != nil {
			_ = lp.Signal(unix.SIGKILL)
			_, _ = lp.Wait()
			return server.Started{}, err
		}
	}
	return s, nil
}

// own gives FIFOs to the container's root if that is another user here: the
// container cannot do so itself, and could not open /dev/stdout again.
func own(c *libcontainer.Container, ref server.Ref, p server.Process) error {
	opts, err := parse(ref.Options)
	if err != nil {
		return err
	}
	uid, gid := int(opts.IoUid), int(opts.IoGid)
	cfg := c.Config()
	if uid == 0 && gid == 0 && cfg.Namespaces.Contains(configs.NEWUSER) {
		// Without mappings of its own it joins another's namespace.
		if len(cfg.UIDMappings) == 0 || len(cfg.GIDMappings) == 0 {
			return nil
		}
		if uid, err = cfg.HostRootUID(); err != nil {
			return invalid("user namespace: %v", err)
		}
		if gid, err = cfg.HostRootGID(); err != nil {
			return invalid("user namespace: %v", err)
		}
	}
	if uid == 0 && gid == 0 {
		return nil
	}
	for _, f := range []*os.File{p.Stdin, p.Stdout, p.Stderr} {
		if f == nil {
			continue
		}
		info, err := f.Stat()
		if err != nil {
			return fmt.Errorf("stdio: %w", err)
		}
		if info.Mode()&os.ModeNamedPipe == 0 {
			continue
		}
		if err := f.Chown(uid, gid); err != nil {
			return fmt.Errorf("give stdio to user %d: %w", uid, err)
		}
	}
	return nil
}

func missing(what, path, remedy string) error {
	return fmt.Errorf("%s %s is missing: %s: %w", what, path, remedy, errdefs.ErrFailedPrecondition)
}
