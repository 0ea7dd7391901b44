// Package artifact has containerd pull WebAssembly: images of the platform
// wasi/wasm, and OCI Wasm artifacts, which have a module in place of layers.
//
// It wraps the transfer service, by which CRI and clients pull. Of an index it
// takes the Wasm manifest where there is none for the host, or where the pull
// is for a Wasm sandbox; of an artifact it makes an image that everything in
// containerd can handle:
//
//	artifact                                   image
//	manifest ◄──────────────────────────────── manifest
//	 ├─ config application/vnd.wasm.config…     ├─ config: entrypoint /module.wasm
//	 └─ layer  application/wasm ◄────────────── └─ layer …layer.v1.tar+wasm
//
// The image's manifest and config follow from the artifact alone, so that all
// nodes have the same. Its layer is the artifact's own blob under a media type
// that a stream processor turns into a tar archive when it is unpacked: the
// module is stored once. The image keeps the artifact, so that a pull of what
// is there already transfers nothing.
package artifact

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"

	"github.com/containerd-kuasar/containerd-kuasar/plugins/wrap"
)

// Stock names the plugin that Register wraps.
const Stock = "io.containerd.transfer.v1.local"

// Register wraps the transfer service.
func Register() error {
	diff.RegisterProcessor(diff.StaticHandler(layerType, unpackLayer))
	return wrap.Plugin(Stock, func(r *plugin.Registration) {
		stock := r.InitFn
		r.InitFn = func(ic *plugin.InitContext) (any, error) {
			instance, err := stock(ic)
			if err != nil {
				return nil, err
			}
			service, ok := instance.(transfer.Transferrer)
			if !ok {
				return nil, fmt.Errorf("plugin %s is a %T, no transfer service", Stock, instance)
			}
			node, err := newNode(ic)
			if err != nil {
				return nil, err
			}
			return &transferrer{service, node}, nil
		}
	})
}

func newNode(ic *plugin.InitContext) (*node, error) {
	db, err := ic.GetSingle(plugins.MetadataPlugin)
	if err != nil {
		return nil, err
	}
	differ, err := ic.GetByID(plugins.DiffPlugin, defaults.DefaultDiffer)
	if err != nil {
		return nil, err
	}
	m := db.(*metadata.DB)
	return &node{content: m.ContentStore(), snapshotter: m.Snapshotter, applier: differ.(diff.Applier)}, nil
}

// transferrer is the transfer service with what is Wasm about images.
type transferrer struct {
	transfer.Transferrer
	node *node
}

// Transfer implements transfer.Transferrer.
func (t *transferrer) Transfer(ctx context.Context, source, dest any, opts ...transfer.Opt) error {
	if store, ok := dest.(*image.Store); ok {
		switch source.(type) {
		case transfer.ImageFetcher, transfer.ImageImporter:
			dest = &destination{store, t.node}
		}
	}
	return t.Transferrer.Transfer(ctx, source, dest, opts...)
}

type preferred struct{}

// Prefer marks a context: pulls made with it are for a Wasm sandbox, and take
// the Wasm manifest of an index that has others, too.
func Prefer(ctx context.Context) context.Context {
	return context.WithValue(ctx, preferred{}, true)
}

func prefers(ctx context.Context) bool { return ctx.Value(preferred{}) != nil }
