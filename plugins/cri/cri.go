// Package cri mends what containerd's CRI plugin does not do for the sandboxes
// of foreign sandboxers.
//
// It forgets when they were made as it restarts: it lists them from a store of
// its own, which it fills at its start without that time. The rest of its view
// comes from the sandboxer and is right. And it pulls images for the host's
// platform, whatever the sandbox runs.
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
			if err := mendPull(service, ic.Plugins()); err != nil {
				log.G(ic.Context).WithError(err).Warn("of images for several platforms the host's is pulled, also for Wasm pods")
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

// mend has the service's lists tell the ages of our sandboxes.
func mend(instance any, controllers []*sandbox.Controller) error {
	return decorate(instance, "RuntimeServiceServer", func(s runtime.RuntimeServiceServer) runtime.RuntimeServiceServer {
		return &decorator{RuntimeServiceServer: s, controllers: controllers}
	})
}

// mendPull has the service's pulls look at whom they are for.
func mendPull(instance any, all *plugin.Set) error {
	wasm, err := handlers(all, "wasm")
	if err != nil {
		return err
	}
	return decorate(instance, "ImageServiceServer", func(s runtime.ImageServiceServer) runtime.ImageServiceServer {
		return &puller{ImageServiceServer: s, wasm: wasm}
	})
}

// decorate puts a decorator in front of a service within the plugin's instance
// (criGRPCServer in plugins/cri). There the service is embedded, so its field's
// name is its interface's.
func decorate[T any](instance any, field string, decorator func(T) T) (err error) {
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
	service, ok := f.Interface().(T)
	if !ok {
		return fmt.Errorf("CRI service %T: %s is a %s", instance, field, f.Type())
	}
	f.Set(reflect.ValueOf(decorator(service)))
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
