package server

import (
	"context"

	"github.com/containerd/ttrpc"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// Trace is an interceptor for calls that Phases is going to be asked about.
func (s *Server) Trace(ctx context.Context, u ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, call ttrpc.Method) (any, error) {
	return s.phases.Interceptor(ctx, u, info, call)
}

// Booted says what a guest's boot went into.
func (s *Server) Booted(p *api.PhasesResponse) { s.phases.Keep("", p) }

// Phases implements api.AgentService.
func (s *Server) Phases(_ context.Context, r *api.PhasesRequest) (*api.PhasesResponse, error) {
	return s.phases.Take(r.Call)
}
