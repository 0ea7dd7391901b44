package server

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/containerd-kuasar/containerd-kuasar/task/stats"
	"github.com/containerd-kuasar/containerd-kuasar/task/wire"
)

// State of a process.
func (s *Server) State(ctx context.Context, r *wire.StateRequest) (*wire.StateResponse, error) {
	p, err := s.process(ctx, r.Id, r.ExecId)
	if err != nil {
		return nil, err
	}
	v, first := p.get(), p.c.init.get()
	st := v.Status
	if st == running && (first.Status == pausing || first.Status == paused) {
		st = first.Status // an exec is paused with its container
	}
	id := r.Id
	if p.exec != "" {
		id = p.exec
	}
	resp := &wire.StateResponse{
		Id: id, Bundle: first.Bundle, Pid: uint32(v.Pid), Status: st.task(),
		Stdin: v.Stdin, Stdout: v.Stdout, Stderr: v.Stderr, Terminal: v.Terminal,
		ExecId: p.exec,
	}
	if v.Exit != nil {
		resp.ExitStatus, resp.ExitedAt = v.Exit.Status, timestamppb.New(v.Exit.At)
	}
	return resp, nil
}

// Wait blocks until the process exited. A process deleted meanwhile that never
// ran is errdefs.ErrNotFound.
func (s *Server) Wait(ctx context.Context, r *wire.WaitRequest) (*wire.WaitResponse, error) {
	p, err := s.process(ctx, r.Id, r.ExecId)
	if err != nil {
		return nil, err
	}
	if err := p.await(ctx); err != nil {
		return nil, err
	}
	e := p.get().Exit
	if e == nil {
		return nil, fmt.Errorf("%s was deleted: %w", p, errdefs.ErrNotFound)
	}
	return &wire.WaitResponse{ExitStatus: e.Status, ExitedAt: timestamppb.New(e.At)}, nil
}

// Pids lists all processes of a container; those of execs carry their id.
func (s *Server) Pids(ctx context.Context, r *wire.PidsRequest) (*wire.PidsResponse, error) {
	c, err := s.container(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	pids, err := c.runtime.Pids(ctx, c.ref())
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, err
	}
	// Clients take an empty list of a live container for a failure.
	if v := c.init.get(); len(pids) == 0 && v.Pid != 0 && v.Status != stopped {
		pids = []int{v.Pid}
	}
	execs := c.pids()
	resp := &wire.PidsResponse{}
	for _, pid := range pids {
		info := &tasktypes.ProcessInfo{Pid: uint32(pid)}
		if exec := execs[pid]; exec != "" {
			if info.Info, err = typeurl.MarshalAnyToProto(&options.ProcessDetails{ExecID: exec}); err != nil {
				return nil, fmt.Errorf("processes of container %s: %w", c.id, err)
			}
		}
		resp.Processes = append(resp.Processes, info)
	}
	return resp, nil
}

// pids maps those of running execs to their ids.
func (c *container) pids() map[int]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := map[int]string{}
	for id, p := range c.execs {
		if p.saved.Status == running {
			m[p.saved.Pid] = id
		}
	}
	return m
}

// Stats of a container's cgroup, also after it exited and until Delete.
func (s *Server) Stats(ctx context.Context, r *wire.StatsRequest) (*wire.StatsResponse, error) {
	c, err := s.container(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	g, ok := c.runtime.(Grouper)
	if !ok {
		return nil, missing(c, "measure")
	}
	paths, err := g.Cgroups(ctx, c.ref())
	if err != nil {
		return nil, err
	}
	m, err := stats.Metrics(paths)
	if err != nil {
		return nil, fmt.Errorf("stats of container %s: %w", c.id, err)
	}
	return &wire.StatsResponse{Stats: typeurl.MarshalProto(m)}, nil
}

// Connect names the processes behind a container.
func (s *Server) Connect(ctx context.Context, r *wire.ConnectRequest) (*wire.ConnectResponse, error) {
	c, err := s.container(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	return &wire.ConnectResponse{ShimPid: uint32(os.Getpid()), TaskPid: uint32(c.init.get().Pid)}, nil
}

// Shutdown does nothing: it is meant for an agent of one container.
func (s *Server) Shutdown(context.Context, *wire.ShutdownRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func cut(id string) (namespace, container string) {
	namespace, container, _ = strings.Cut(id, "/")
	return namespace, container
}
