// Package cri mends what containerd's CRI plugin forgets about the sandboxes
// of foreign sandboxers when it restarts: when they were made.
//
// It lists them from a store of its own, which it fills at its start without
// that time. The rest of its view comes from the sandboxer and is right.
package cri

import (
	"context"
	"fmt"
	"reflect"

	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/log"
	"github.com/containerd/plugin"
	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/plugins/wrap"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
)

// Stock names the plugin that Register wraps.
const Stock = "io.containerd.grpc.v1.cri"

// Register wraps the CRI plugin.
func Register() error {
	return wrap.Plugin(Stock, func(r *plugin.Registration) {
		stock := r.InitFn
		r.InitFn = func(ic *plugin.InitContext) (any, error) {
			service, err := stock(ic)
			if err != nil {
				return nil, err
			}
			if err := mend(service, controllers(ic)); err != nil {
				log.G(ic.Context).WithError(err).Warn("after a restart pods of our sandboxers are listed without their age")
			}
			return service, nil
		}
	})
}

// controllers are those of our sandboxers.
func controllers(ic *plugin.InitContext) []*sandbox.Controller {
	all, err := ic.GetByType(plugins.SandboxControllerPlugin)
	if err != nil {
		return nil
	}
	var ours []*sandbox.Controller
	for _, c := range all {
		if c, ok := c.(*sandbox.Controller); ok {
			ours = append(ours, c)
		}
	}
	return ours
}

// field is where the plugin's instance (criGRPCServer in plugins/cri) keeps the
// service. It is embedded, so its name is its interface's.
const field = "RuntimeServiceServer"

// mend puts a decorator in front of the service within the plugin's instance.
func mend(instance any, controllers []*sandbox.Controller) (err error) {
	defer func() {
		if r := recover(); r != nil { // reflection's way to say no
			err = fmt.Errorf("CRI service %T: %v", instance, r)
		}
	}()
	v := reflect.ValueOf(instance)
	for v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	f := v.FieldByName(field)
	if !f.IsValid() || !f.CanSet() {
		return fmt.Errorf("CRI service %T has no field %s that can be set", instance, field)
	}
	service, ok := f.Interface().(runtime.RuntimeServiceServer)
	if !ok {
		return fmt.Errorf("CRI service %T: %s is a %s", instance, field, f.Type())
	}
	f.Set(reflect.ValueOf(&decorator{RuntimeServiceServer: service, controllers: controllers}))
	return nil
}

// decorator is the CRI service with the ages of our sandboxes.
type decorator struct {
	runtime.RuntimeServiceServer
	controllers []*sandbox.Controller
}

// ListPodSandbox implements runtime.RuntimeServiceServer.
func (d *decorator) ListPodSandbox(ctx context.Context, r *runtime.ListPodSandboxRequest) (*runtime.ListPodSandboxResponse, error) {
	resp, err := d.RuntimeServiceServer.ListPodSandbox(ctx, r)
	if err == nil {
		d.date(resp.Items)
	}
	return resp, err
}

// StreamPodSandboxes implements runtime.RuntimeServiceServer.
func (d *decorator) StreamPodSandboxes(r *runtime.StreamPodSandboxesRequest, s grpc.ServerStreamingServer[runtime.StreamPodSandboxesResponse]) error {
	return d.RuntimeServiceServer.StreamPodSandboxes(r, &stream{s, d})
}

type stream struct {
	grpc.ServerStreamingServer[runtime.StreamPodSandboxesResponse]
	decorator *decorator
}

func (s *stream) Send(resp *runtime.StreamPodSandboxesResponse) error {
	s.decorator.date(resp.PodSandboxes)
	return s.ServerStreamingServer.Send(resp)
}

// date fills in when our sandboxes were made.
func (d *decorator) date(pods []*runtime.PodSandbox) {
	for _, p := range pods {
		for _, c := range d.controllers {
			if at, found := c.CreatedAt(p.Id); found {
				p.CreatedAt = at.UnixNano()
			}
		}
	}
}
