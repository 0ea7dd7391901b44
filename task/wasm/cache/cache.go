// Package cache keeps compiled modules on disk, so that a node compiles each
// module once for each engine.
//
// An entry is a directory with what the compiler wrote, and a list of it with
// checksums. It appears by a rename, whole, and is never changed: who has found
// it may map its files. One that is damaged, by a disk or a power failure, is
// made again. The cache is written by root alone, in a directory that nobody
// else can enter: engines run what is in it without looking.
//
// Entries that were not used for the longest time are removed when the cache is
// over its limit, but none that was used within the last minute: a container
// that was given it may not have opened it yet.
package cache

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
)

var (
	fpFill   = failpoint.New("wasm/cache/fill")
	fpRename = failpoint.New("wasm/cache/rename")
)

// Limit is the default of New's, in bytes: some hundred programs of Go.
const Limit = 2 << 30

// Cache is a directory of compiled modules. One process at a time should have
// it, since only callers of one Cache share a compilation; several do no harm.
type Cache struct {
	dir   string
	limit int64
	fills singleflight.Group

	mu    sync.Mutex
	sound map[string]string // verified entries by directory, as look saw them
}

// New makes a cache of a directory, which is made when it is needed. A limit of
// 0 is the default one.
func New(dir string, limit int64) *Cache {
	if limit == 0 {
		limit = Limit
	}
	return &Cache{dir: dir, limit: limit, sound: map[string]string{}}
}

// Compile writes what it makes of a module into an empty directory. Its context
// is not that of a caller: it ends what it does after a time of its own.
type Compile func(dir string) error

// Get returns the directory of an entry, which it has compile fill if it is not
// there or damaged. Callers for the same entry wait for one compilation; it
// goes on for the next caller if a context ends the waiting.
func (c *Cache) Get(ctx context.Context, key Key, compile Compile) (string, error) {
	dir := filepath.Join(c.dir, key.name())
	if err := c.verify(dir); err == nil {
		touch(dir)
		return dir, nil
	}
	filled := c.fills.DoChan(dir, func() (_ any, err error) {
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("compile: %v", r)
			}
		}()
		if c.verify(dir) == nil { // another caller was first
			return nil, nil
		}
		return nil, c.fill(dir, compile)
	})
	select {
	case r := <-filled:
		if r.Err != nil {
			return "", r.Err
		}
		return dir, nil
	case <-ctx.Done():
		return "", fmt.Errorf("compile for %s: it goes on: %w", key.Engine, ctx.Err())
	}
}

// verify holds that an entry is what was once written. It reads it once; after
// that it looks whether the files are the same.
func (c *Cache) verify(dir string) error {
	seen, err := look(dir)
	if err != nil {
		return err
	}
	if c.known(dir) == seen {
		return nil
	}
	if err := verify(dir); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sound[dir] = seen
	return nil
}

func (c *Cache) known(dir string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sound[dir]
}

// fill makes an entry, in place of a damaged one if there is one.
func (c *Cache) fill(dir string, compile Compile) error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return fmt.Errorf("make cache of modules: %w", err)
	}
	work, err := os.MkdirTemp(c.dir, temporary)
	if err != nil {
		return fmt.Errorf("make cache of modules: %w", err)
	}
	defer os.RemoveAll(work) // by then nothing, or what was replaced
	fpFill.Hit()
	if err := compile(work); err != nil {
		return err
	}
	if err := sum(work); err != nil {
		return fmt.Errorf("sum compiled module: %w", err)
	}
	fpRename.Hit()
	if err := place(work, dir); err != nil {
		return fmt.Errorf("keep compiled module: %w", err)
	}
	c.evict(time.Now())
	return nil
}

// place puts a new entry where none is, or a damaged one: that leaves no moment
// without one. If another process was first, its entry stays.
func place(work, dir string) error {
	err := os.Rename(work, dir)
	if err == nil || verify(dir) == nil {
		return nil
	}
	if unix.Renameat2(unix.AT_FDCWD, work, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE) == nil {
		return nil
	}
	return err
}
