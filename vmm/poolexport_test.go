package vmm

import (
	"context"
	"os"
	"path/filepath"

	"github.com/containerd-kuasar/containerd-kuasar/internal/cgroup"
)

// PoolGroups are the directories that there are of the pool's cgroup.
func (t *Templates) PoolGroups() (found []string) {
	all, _ := cgroup.Hierarchies()
	for _, h := range all {
		dir := filepath.Join(h, t.pool.group)
		if _, err := os.Stat(dir); err == nil {
			found = append(found, dir)
		}
	}
	return found
}

// Squeeze is what happens when memory is short, and returns when all machines
// are gone.
func (t *Templates) Squeeze(ctx context.Context) error {
	t.pool.squeeze()
	for {
		t.pool.mu.Lock()
		changed, left := t.pool.changed, t.pool.ending+len(t.pool.gone)
		t.pool.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
