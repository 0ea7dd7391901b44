package cache

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	// temporary is how names of what is no entry yet, or none any more, begin.
	temporary = ".tmp-"

	// grace is how long an entry is safe after its use.
	grace = time.Minute

	// abandoned is the age of what a process that died has left. No compiler
	// may take that long.
	abandoned = time.Hour
)

// evict removes entries, the longest unused first, until the others are within
// the limit. What cannot be removed stays until the next time.
func (c *Cache) evict(now time.Time) {
	names, err := os.ReadDir(c.dir)
	if err != nil {
		return
	}
	type entry struct {
		dir  string
		used time.Time
		size int64
	}
	var entries []entry
	var total int64
	for _, name := range names {
		e := entry{dir: filepath.Join(c.dir, name.Name())}
		info, err := name.Info()
		if err != nil {
			continue
		}
		if strings.HasPrefix(name.Name(), temporary) {
			if now.Sub(info.ModTime()) > abandoned {
				_ = os.RemoveAll(e.dir)
			}
			continue
		}
		if info, err := os.Stat(filepath.Join(e.dir, list)); err == nil {
			e.used = info.ModTime()
		}
		e.size = size(e.dir)
		total += e.size
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b entry) int { return a.used.Compare(b.used) })
	for _, e := range entries {
		if total <= c.limit || now.Sub(e.used) < grace {
			return
		}
		if c.remove(e.dir) == nil {
			total -= e.size
		}
	}
}

// remove takes an entry away whole: nobody finds half of it.
func (c *Cache) remove(dir string) error {
	grave, err := os.MkdirTemp(c.dir, temporary)
	if err != nil {
		return err
	}
	err = errors.Join(os.Rename(dir, filepath.Join(grave, "entry")), os.RemoveAll(grave))
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sound, dir)
	return err
}

// size is what an entry takes of the limit, in bytes.
func size(dir string) int64 {
	var total int64
	_ = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err == nil {
			if info, err := entry.Info(); err == nil && info.Mode().IsRegular() {
				total += info.Size()
			}
		}
		return nil
	})
	return total
}
