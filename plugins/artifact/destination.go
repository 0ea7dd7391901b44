package artifact

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

// node is where images are kept.
type node struct {
	content     content.Store
	snapshotter func(name string) snapshots.Snapshotter // nil: there is none of that name
	applier     diff.Applier
}

// destination is the image store that a transfer goes to. What it has of
// image.Store works for all else; Wasm images are chosen, made and unpacked
// here, as the service does it for the host's platform only.
type destination struct {
	*stock
	node *node
}

type stock = image.Store

var (
	_ transfer.ImageFilterer        = (*destination)(nil)
	_ transfer.ImageStorer          = (*destination)(nil)
	_ transfer.ImageUnpacker        = (*destination)(nil)
	_ transfer.ImagePlatformsGetter = (*destination)(nil)
)

// ImageFilter implements transfer.ImageFilterer: it says what is fetched.
func (d *destination) ImageFilter(children images.HandlerFunc, store content.Store) images.HandlerFunc {
	other := d.stock.ImageFilter(children, store)
	all := images.SetChildrenLabels(store, children)
	return func(ctx context.Context, desc imagespec.Descriptor) ([]imagespec.Descriptor, error) {
		switch {
		case images.IsIndexType(desc.MediaType):
			manifests, err := children(ctx, desc)
			if err != nil {
				return nil, err
			}
			if m, ok := choose(manifests, d.Platforms(), prefers(ctx)); ok {
				return []imagespec.Descriptor{m}, nil
			}
		case images.IsManifestType(desc.MediaType) && desc.Platform != nil && wasm(*desc.Platform) && len(d.Platforms()) > 0:
			return all(ctx, desc)
		}
		return other(ctx, desc)
	}
}

// UnpackPlatforms implements transfer.ImageUnpacker: Wasm is not left to the
// service.
func (d *destination) UnpackPlatforms() []transfer.UnpackConfiguration {
	return slices.DeleteFunc(d.stock.UnpackPlatforms(), func(u transfer.UnpackConfiguration) bool { return wasm(u.Platform) })
}

// Store implements transfer.ImageStorer. It is called when all is fetched, with
// a lease that keeps what it makes.
func (d *destination) Store(ctx context.Context, desc imagespec.Descriptor, store images.Store) ([]images.Image, error) {
	target, err := d.wasm(ctx, desc)
	if err != nil {
		return nil, fmt.Errorf("store Wasm image %s: %w", desc.Digest, err)
	}
	if target == nil {
		return d.stock.Store(ctx, desc, store)
	}
	if unpacks := d.stock.UnpackPlatforms(); len(unpacks) > 0 {
		if err := d.node.unpack(ctx, *target, unpacks[0].Snapshotter); err != nil {
			return nil, fmt.Errorf("unpack Wasm image %s: %w", desc.Digest, err)
		}
	}
	target.Annotations = desc.Annotations
	return d.stock.Store(ctx, *target, store)
}

// wasm is the manifest of the Wasm image that was fetched, nil if it is another
// one.
func (d *destination) wasm(ctx context.Context, desc imagespec.Descriptor) (*imagespec.Descriptor, error) {
	if images.IsIndexType(desc.MediaType) {
		manifests, err := images.Children(ctx, d.node.content, desc)
		if err != nil {
			return nil, err
		}
		m, ok := choose(manifests, d.Platforms(), prefers(ctx))
		if !ok {
			return nil, nil
		}
		desc = m
	}
	if !images.IsManifestType(desc.MediaType) {
		return nil, nil
	}
	return convert(ctx, d.node.content, desc)
}

// unpack makes the image's snapshots. Those that are there already are kept.
func (n *node) unpack(ctx context.Context, desc imagespec.Descriptor, name string) error {
	if name == "" {
		name = defaults.DefaultSnapshotter
	}
	snapshotter := n.snapshotter(name)
	if snapshotter == nil {
		return fmt.Errorf("snapshotter %q: %w", name, errdefs.ErrNotFound)
	}
	u, err := unpack.NewUnpacker(ctx, n.content, unpack.WithUnpackPlatform(unpack.Platform{
		Platform: platforms.All, SnapshotterKey: name, Snapshotter: snapshotter, Applier: n.applier,
	}))
	if err != nil {
		return err
	}
	err = images.Dispatch(ctx, u.Unpack(images.ChildrenHandler(n.content)), nil, desc)
	if _, unpackErr := u.Wait(); err == nil {
		err = unpackErr
	}
	return err
}
