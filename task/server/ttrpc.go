package server

import (
	"context"
	"fmt"
	"runtime/debug"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// v2 and v3 are the services of containerd's Task API: the same methods and,
// on the wire, the same messages.
const v2, v3 = "containerd.task.v2.Task", "containerd.task.v3.Task"

// Register makes t serve the Server: Task API v3 and v2, and the agent's verbs.
// t must have been made with Interceptor and Trace.
func (s *Server) Register(t *ttrpc.Server) {
	task := &ttrpc.ServiceDesc{Methods: s.methods()}
	t.RegisterService(v2, task)
	t.RegisterService(v3, task)
	api.RegisterAgentService(t, s)
}

func (s *Server) methods() map[string]ttrpc.Method {
	return map[string]ttrpc.Method{
		"State":      method(s.State),
		"Create":     method(s.Create),
		"Start":      method(s.Start),
		"Delete":     method(s.Delete),
		"Pids":       method(s.Pids),
		"Pause":      method(s.Pause),
		"Resume":     method(s.Resume),
		"Checkpoint": method(s.Checkpoint),
		"Kill":       method(s.Kill),
		"Exec":       method(s.Exec),
		"ResizePty":  method(s.ResizePty),
		"CloseIO":    method(s.CloseIO),
		"Update":     method(s.Update),
		"Wait":       method(s.Wait),
		"Stats":      method(s.Stats),
		"Connect":    method(s.Connect),
		"Shutdown":   method(s.Shutdown),
	}
}

func method[Req, Resp any](call func(context.Context, *Req) (*Resp, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		req := new(Req)
		if err := unmarshal(req); err != nil {
			return nil, err
		}
		return call(ctx, req)
	}
}

// Interceptor turns errors into what ttrpc carries, and a panic over a request
// into an error of that request alone.
func Interceptor(ctx context.Context, u ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, call ttrpc.Method) (resp any, err error) {
	defer func() {
		if r := recover(); r != nil {
			log.G(ctx).Errorf("panic in %s: %v\n%s", info.FullMethod, r, debug.Stack())
			err = fmt.Errorf("panic in %s: %v: %w", info.FullMethod, r, errdefs.ErrInternal)
		}
		if err != nil {
			resp, err = nil, errgrpc.ToGRPC(err)
		}
	}()
	return call(ctx, u)
}
