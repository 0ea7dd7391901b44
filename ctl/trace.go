package ctl

import (
	"context"
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
)

// Filter says which calls are meant. The zero value is those that have to do
// with a sandbox of ours.
type Filter struct {
	All bool   // of the stock runtime and of images, too
	Pod string // by its id, the beginning of that, its name, or namespace/name
}

func (f Filter) passes(c Call) bool {
	if !f.All && !c.Ours {
		return false
	}
	return f.Pod == "" || c.Sandbox != "" && strings.HasPrefix(c.Sandbox, f.Pod) ||
		c.Pod != "" && (c.Pod == f.Pod || path.Base(c.Pod) == f.Pod)
}

// Watch has the daemon trace its calls, and passes each that ends to f, until
// ctx is done or f returns an error. It calls ready when calls are traced from
// then on.
func (n *Node) Watch(ctx context.Context, filter Filter, ready func(), f func(Call) error) error {
	d, err := dial(ctx, n.Address)
	if err != nil {
		return err
	}
	defer d.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g := &Gatherer{}
	known, err := d.sandboxes(ctx)
	if err != nil {
		return err
	}
	for _, s := range known {
		if ours(s.Sandboxer) {
			g.name(s.ID, strings.TrimPrefix(s.PodNamespace+"/"+s.Name, "/"))
		}
	}
	stream, err := d.Conn().(grpc.ClientConnInterface).NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/"+trace.Service+"/"+trace.Watch)
	if err == nil {
		err = stream.SendMsg(&emptypb.Empty{})
	}
	if err == nil {
		err = stream.CloseSend()
	}
	if err == nil {
		_, err = stream.Header()
	}
	if err != nil {
		return watchError(err)
	}
	ready()
	for {
		var d tracepb.TracesData
		if err := stream.RecvMsg(&d); err != nil {
			return watchError(err)
		}
		for _, s := range Spans(&d) {
			if c, ended := g.Add(s); ended && filter.passes(c) {
				if err := f(c); err != nil {
					return err
				}
			}
		}
	}
}

func watchError(err error) error {
	err = errgrpc.ToNative(err)
	if errdefs.IsNotImplemented(err) {
		err = fmt.Errorf("%w: the daemon is of another release", err)
	}
	return fmt.Errorf("watch the daemon's traces: %w", err)
}
