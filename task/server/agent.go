package server

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// Info answers also before the Server is restored.
func (s *Server) Info(context.Context, *api.InfoRequest) (*api.InfoResponse, error) {
	return &api.InfoResponse{Protocol: api.Protocol, Version: s.cfg.Version, Pid: uint32(os.Getpid())}, nil
}

// List implements api.AgentService.
func (s *Server) List(ctx context.Context, _ *api.ListRequest) (*api.ListResponse, error) {
	if err := s.await(ctx); err != nil {
		return nil, err
	}
	resp := &api.ListResponse{}
	for _, c := range s.all() {
		c.mu.Lock()
		resp.Processes = append(resp.Processes, describe(c.init))
		for _, p := range c.execs {
			resp.Processes = append(resp.Processes, describe(p))
		}
		c.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.quarantined { // with a status that nobody knows
		resp.Processes = append(resp.Processes, &api.Process{Namespace: k.namespace, ContainerId: k.id})
	}
	return resp, nil
}

// describe is called with the container's mutex held.
func describe(p *process) *api.Process {
	v := &p.saved
	d := &api.Process{
		Namespace: p.c.namespace, ContainerId: p.c.id, ExecId: p.exec,
		Pid: uint32(v.Pid), Status: v.Status.agent(),
		Stdin: v.Stdin, Stdout: v.Stdout, Stderr: v.Stderr, Terminal: v.Terminal,
	}
	if v.Exit != nil {
		d.Exit = apiExit(v.Exit)
	}
	return d
}

// Events implements api.AgentService. The first event is empty: from it on,
// everything is reported.
func (s *Server) Events(ctx context.Context, _ *api.EventsRequest, stream api.Agent_EventsServer) error {
	c, end := s.events.subscribe()
	defer end()
	if err := stream.Send(&api.Event{}); err != nil {
		return err
	}
	for {
		select {
		case e, ok := <-c:
			if !ok {
				return errgrpc.ToGRPC(errBehind)
			}
			if err := stream.Send(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// Retainer is what stdio has beside that keeps the newest output.
type Retainer interface {
	Retained() (*api.RetainedResponse, error)
}

// Retained implements api.AgentService.
func (s *Server) Retained(ctx context.Context, r *api.RetainedRequest) (*api.RetainedResponse, error) {
	p, err := s.process(ctx, r.ContainerId, "")
	if err != nil {
		return nil, err
	}
	sio, err := p.stdio()
	if err != nil {
		return nil, err
	}
	retainer, ok := sio.(Retainer)
	if !ok {
		return nil, fmt.Errorf("%s does not retain its output: its spec lacks the annotation %s: %w", p, api.RetainOutput, errdefs.ErrFailedPrecondition)
	}
	resp, err := retainer.Retained()
	if err != nil {
		return nil, fmt.Errorf("retained output of %s: %w", p, err)
	}
	return resp, nil
}
