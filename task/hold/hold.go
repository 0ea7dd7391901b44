// Package hold keeps a worker's file descriptors alive in the daemon, and
// gives them back to the next worker: one outlives the other's death.
package hold

import (
	"context"
	"os"

	"github.com/containerd/errdefs"
)

// Kinds of descriptors.
const (
	Pidfd = "pidfd"
	Pty   = "pty"
)

// Key names a descriptor.
func Key(namespace, container, exec, kind string) string {
	return namespace + "/" + container + "/" + exec + "/" + kind
}

// Holder is the worker's end.
type Holder struct{}

// Listen makes the worker's end.
func Listen(path string) (*Holder, error) { return nil, errdefs.ErrNotImplemented }

// Restore waits for the daemon.
func (h *Holder) Restore(ctx context.Context) (map[string]*os.File, error) {
	return nil, errdefs.ErrNotImplemented
}

// Hold gives f to the daemon.
func (h *Holder) Hold(key string, f *os.File) error { return errdefs.ErrNotImplemented }

// Drop lets go of key.
func (h *Holder) Drop(key string) {}

// DropAll lets go of all keys with prefix.
func (h *Holder) DropAll(prefix string) {}

// Close ends the holder.
func (h *Holder) Close() error { return nil }

// Keeper is the daemon's end.
type Keeper struct{}

// Link is one connection to a worker.
type Link struct{}

// NewKeeper makes an empty one.
func NewKeeper() *Keeper { return &Keeper{} }

// Connect dials a worker.
func (k *Keeper) Connect(ctx context.Context, path string) (*Link, error) {
	return nil, errdefs.ErrNotImplemented
}

// Done is closed when the connection ended.
func (l *Link) Done() <-chan struct{} { return nil }

// Close ends the connection.
func (l *Link) Close() error { return nil }

// Keys lists what is held.
func (k *Keeper) Keys() []string { return nil }

// Get duplicates a descriptor.
func (k *Keeper) Get(key string) (*os.File, error) { return nil, errdefs.ErrNotImplemented }

// Clear closes all.
func (k *Keeper) Clear() {}

// Close ends the keeper.
func (k *Keeper) Close() error { return nil }
