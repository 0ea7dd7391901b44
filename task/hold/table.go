package hold

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// table owns descriptors by key. Safe for concurrent use: what is taken out
// of it is a duplicate.
type table struct {
	mu  sync.Mutex
	fds map[string]int
}

func newTable() *table { return &table{fds: map[string]int{}} }

// put takes fd over, also on error, in place of what had its key.
func (t *table) put(key string, fd int) error {
	t.mu.Lock()
	old, replaced := t.fds[key]
	full := !replaced && len(t.fds) >= maxHeld
	if !full {
		t.fds[key] = fd
	}
	t.mu.Unlock()
	if full {
		unix.Close(fd)
		return fmt.Errorf("hold %s: %d descriptors are held already: %w", key, maxHeld, errdefs.ErrResourceExhausted)
	}
	if replaced {
		unix.Close(old)
	}
	return nil
}

// get returns a duplicate.
func (t *table) get(key string) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fd, ok := t.fds[key]
	if !ok {
		return -1, fmt.Errorf("descriptor %s: nobody holds it: %w", key, errdefs.ErrNotFound)
	}
	d, err := dup(fd)
	if err != nil {
		return -1, fmt.Errorf("descriptor %s: %w", key, err)
	}
	return d, nil
}

func (t *table) file(key string) (*os.File, error) {
	fd, err := t.get(key)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), key), nil
}

func (t *table) has(key string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.fds[key]
	return ok
}

// drop closes the descriptor and says whether there was one.
func (t *table) drop(key string) bool {
	t.mu.Lock()
	fd, ok := t.fds[key]
	delete(t.fds, key)
	t.mu.Unlock()
	if ok {
		unix.Close(fd)
	}
	return ok
}

// keys are sorted.
func (t *table) keys(prefix string) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	keys := slices.Collect(maps.Keys(t.fds))
	keys = slices.DeleteFunc(keys, func(k string) bool { return !strings.HasPrefix(k, prefix) })
	slices.Sort(keys)
	return keys
}

func (t *table) clear() {
	t.mu.Lock()
	fds := t.fds
	t.fds = map[string]int{}
	t.mu.Unlock()
	for _, fd := range fds {
		unix.Close(fd)
	}
}
