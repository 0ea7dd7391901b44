package server

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/task/wire"
)

var (
	fpPause  = failpoint.New("server/pause/runtime")
	fpResume = failpoint.New("server/resume/runtime")
)

// change runs do in the turn of the container's first process if op is allowed.
func (s *Server) change(ctx context.Context, id string, op operation, do func(p *process) error) (*emptypb.Empty, error) {
	p, err := s.process(ctx, id, "")
	if err != nil {
		return nil, err
	}
	if err := p.take(ctx); err != nil {
		return nil, err
	}
	defer p.pass()
	if err := p.check(op); err != nil {
		return nil, err
	}
	if err := do(p); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

func missing(c *container, what operation) error {
	return fmt.Errorf("cannot %s container %s: its runtime does not have that: %w", what, c.id, errdefs.ErrNotImplemented)
}

// Pause stops all processes of a container until Resume.
func (s *Server) Pause(ctx context.Context, r *wire.PauseRequest) (*emptypb.Empty, error) {
	return s.change(ctx, r.Id, opPause, func(p *process) error {
		pauser, ok := p.c.runtime.(Pauser)
		if !ok {
			return missing(p.c, opPause)
		}
		if err := p.write(func(v *saved) { v.Status = pausing }); err != nil {
			return err
		}
		if err := p.become(pausing); err != nil {
			return err
		}
		fpPause.Hit()
		to := paused
		err := pauser.Pause(ctx, p.c.ref())
		if err != nil {
			to = running
		}
		return Join(err, p.write(func(v *saved) { v.Status = to }), p.become(to))
	})
}

// Resume undoes Pause.
func (s *Server) Resume(ctx context.Context, r *wire.ResumeRequest) (*emptypb.Empty, error) {
	return s.change(ctx, r.Id, opResume, func(p *process) error {
		pauser, ok := p.c.runtime.(Pauser)
		if !ok {
			return missing(p.c, opResume)
		}
		// On disk it is "pausing" until it is known what it is.
		if err := p.write(func(v *saved) { v.Status = pausing }); err != nil {
			return err
		}
		fpResume.Hit()
		if err := pauser.Resume(ctx, p.c.ref()); err != nil {
			return Join(err, p.write(func(*saved) {}))
		}
		return Join(p.write(func(v *saved) { v.Status = running }), p.become(running))
	})
}

// Update changes a container's resources; r.Resources is the JSON of the
// spec's linux.resources.
func (s *Server) Update(ctx context.Context, r *wire.UpdateTaskRequest) (*emptypb.Empty, error) {
	return s.change(ctx, r.Id, opUpdate, func(p *process) error {
		updater, ok := p.c.runtime.(Updater)
		if !ok {
			return missing(p.c, opUpdate)
		}
		var res specs.LinuxResources
		if err := json.Unmarshal(r.Resources.GetValue(), &res); err != nil {
			return fmt.Errorf("update %s: resources: %w: %w", p, err, errdefs.ErrInvalidArgument)
		}
		return updater.Update(ctx, p.c.ref(), &res)
	})
}

// Checkpoint saves a container to r.Path.
func (s *Server) Checkpoint(ctx context.Context, r *wire.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return s.change(ctx, r.Id, opCheckpoint, func(p *process) error {
		checkpointer, ok := p.c.runtime.(Checkpointer)
		if !ok {
			return missing(p.c, opCheckpoint)
		}
		opts := &options.CheckpointOptions{}
		if err := unpack(r.Options, opts); err != nil {
			return fmt.Errorf("checkpoint %s: %w", p, err)
		}
		end := s.cfg.Reaper.Begin()
		defer end()
		return checkpointer.Checkpoint(ctx, p.c.ref(), r.Path, opts)
	})
}

// unpack decodes a if it is of to's type or empty.
func unpack(a *anypb.Any, to proto.Message) error {
	if a.GetTypeUrl() == "" {
		return nil
	}
	if !a.MessageIs(to) && a.TypeUrl != string(to.ProtoReflect().Descriptor().FullName()) {
		return fmt.Errorf("options of type %s, not %s: %w", a.TypeUrl, to.ProtoReflect().Descriptor().FullName(), errdefs.ErrInvalidArgument)
	}
	if err := proto.Unmarshal(a.Value, to); err != nil {
		return fmt.Errorf("options: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}
