package server

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-kuasar/containerd-kuasar/internal/cgroup"
	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/task/wire"
)

var (
	fpRecord  = failpoint.New("server/create/record")
	fpCreate  = failpoint.New("server/create/runtime")
	fpCreated = failpoint.New("server/create/created")
)

// warm covers the time until a new process is moved into its cgroup.
const warm = 50 * time.Millisecond

// Create makes a container from its bundle. Its rootfs is mounted by whoever
// made the bundle: r.Rootfs must be empty.
func (s *Server) Create(ctx context.Context, r *wire.CreateTaskRequest) (*wire.CreateTaskResponse, error) {
	cgroup.Warm(warm)
	ns, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	c, spec, err := s.plan(ns, r)
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", r.Id, err)
	}
	if err := s.reserve(c.key); err != nil {
		return nil, err
	}
	if err := s.create(ctx, c, spec); err != nil {
		s.settle(c.key, nil)
		return nil, err
	}
	s.settle(c.key, c)
	return &wire.CreateTaskResponse{Pid: uint32(c.init.get().Pid)}, nil
}

// plan checks the request and makes the container in memory only.
func (s *Server) plan(ns string, r *wire.CreateTaskRequest) (*container, *specs.Spec, error) {
	switch {
	case !valid(r.Id):
		return nil, nil, fmt.Errorf("id %q: %w", r.Id, errdefs.ErrInvalidArgument)
	case len(r.Rootfs) > 0:
		return nil, nil, fmt.Errorf("rootfs mounts are made before by whoever made the bundle: %w", errdefs.ErrInvalidArgument)
	case r.ParentCheckpoint != "":
		return nil, nil, fmt.Errorf("parent checkpoint: %w", errdefs.ErrNotImplemented)
	}
	v := saved{
		Status: created, Bundle: r.Bundle, Checkpoint: r.Checkpoint,
		Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal,
	}
	if r.Options.GetTypeUrl() != "" {
		v.OptionsURL, v.Options = r.Options.TypeUrl, r.Options.Value
	}
	runtime, err := s.runtime(v.OptionsURL)
	if err != nil {
		return nil, nil, err
	}
	if _, ok := runtime.(Checkpointer); !ok && r.Checkpoint != "" {
		return nil, nil, fmt.Errorf("restore from checkpoint: %w", errdefs.ErrNotImplemented)
	}
	if s.cfg.Refresh != nil && filepath.IsAbs(r.Bundle) {
		if err := s.cfg.Refresh(r.Bundle); err != nil {
			return nil, nil, err
		}
	}
	spec, err := readSpec(r.Bundle)
	if err != nil {
		return nil, nil, err
	}
	v.SharedPID = sharesPID(spec)
	v.Retain = spec.Annotations[api.RetainOutput] == "true"
	return newContainer(s.cfg.Dir, key{ns, r.Id}, runtime, v), spec, nil
}

func (s *Server) runtime(url string) (Runtime, error) {
	r := s.cfg.Runtimes[url]
	if r == nil {
		return nil, fmt.Errorf("no runtime of this agent takes options of type %q: check runtime_type and sandboxer of the handler: %w",
			url, errdefs.ErrInvalidArgument)
	}
	return r, nil
}

// create leaves nothing behind if it fails.
func (s *Server) create(ctx context.Context, c *container, spec *specs.Spec) error {
	if err := c.init.take(ctx); err != nil {
		return err
	}
	defer c.init.pass()
	if err := s.mkdir(c); err != nil {
		return err
	}
	fpRecord.Hit()
	err := c.init.write(func(*saved) {})
	fpCreate.Hit()
	// A container from a checkpoint is made by Start: it has no moment in
	// which it is made and does not run.
	if err == nil && c.init.get().Checkpoint == "" {
		err = s.launch(ctx, c.init, created, func(p Process) (Started, error) {
			p.Spec = spec
			return c.runtime.Create(ctx, c.ref(), p)
		})
		if err == nil {
			s.watch(ctx, c)
		}
	}
	fpCreated.Hit()
	if err != nil {
		end := s.cfg.Reaper.Begin() // of hooks
		defer end()
		return Join(err, c.runtime.Delete(context.WithoutCancel(ctx), c.ref()), os.RemoveAll(c.dir))
	}
	return nil
}

// watch makes an OOM in the container an event.
func (s *Server) watch(ctx context.Context, c *container) {
	g, ok := c.runtime.(Grouper)
	if !ok {
		return
	}
	paths, err := g.Cgroups(ctx, c.ref())
	if err == nil {
		err = s.cfg.OOM.Add(c.namespace+"/"+c.id, paths)
	}
	if err != nil && !errdefs.IsNotImplemented(err) {
		log.G(ctx).WithError(err).WithField("container", c.id).Warn("cannot watch for OOM: kills at the memory limit go unreported")
	}
}
