package cri

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/plugin"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/plugins/artifact"
)

// handlerKey is the annotation, of an image or a pod, that says what a pull is
// for where a client cannot say it in the image's RuntimeHandler. It is
// containerd's.
const handlerKey = "io.containerd.cri.runtime-handler"

// puller is CRI's image service. What it pulls for a Wasm handler is, of an
// image that has several platforms, the Wasm one.
type puller struct {
	runtime.ImageServiceServer
	wasm map[string]bool // handlers
}

// PullImage implements runtime.ImageServiceServer.
func (p *puller) PullImage(ctx context.Context, r *runtime.PullImageRequest) (*runtime.PullImageResponse, error) {
	if p.wasm[cmp.Or(r.GetImage().GetRuntimeHandler(), r.GetImage().GetAnnotations()[handlerKey], r.GetSandboxConfig().GetAnnotations()[handlerKey])] {
		ctx = artifact.Prefer(ctx)
	}
	return p.ImageServiceServer.PullImage(ctx, r)
}

// handlers are those of a sandboxer in CRI's configuration.
func handlers(all *plugin.Set, sandboxer string) (map[string]bool, error) {
	cri := all.Get(plugins.CRIServicePlugin, "runtime")
	if cri == nil {
		return nil, fmt.Errorf("CRI's runtime plugin: %w", errdefs.ErrNotFound)
	}
	// Its type is internal to containerd; the JSON is what it logs.
	raw, err := json.Marshal(cri.Config)
	if err != nil {
		return nil, err
	}
	var config struct {
		Containerd struct {
			Runtimes map[string]struct {
				Sandboxer string `json:"sandboxer"`
			} `json:"runtimes"`
		} `json:"containerd"`
	}
	if err := json.Unmarshal(raw, &config); err != nil {
		return nil, err
	}
	if config.Containerd.Runtimes == nil {
		return nil, fmt.Errorf("handlers in CRI's configuration: %w", errdefs.ErrNotFound)
	}
	found := make(map[string]bool)
	for name, handler := range config.Containerd.Runtimes {
		if handler.Sandboxer == sandboxer {
			found[name] = true
		}
	}
	return found, nil
}
