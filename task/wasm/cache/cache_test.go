package cache

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var key = Key{Module: "m", Engine: "e", Version: "1"}

// writer compiles to one file with some content.
func writer(content string) Compile {
	return func(dir string) error { return os.WriteFile(filepath.Join(dir, "code"), []byte(content), 0o600) }
}

func never(string) error { return errors.New("compiled again") }

func get(t *testing.T, c *Cache, k Key, compile Compile) string {
	t.Helper()
	dir, err := c.Get(t.Context(), k, compile)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func content(t *testing.T, dir string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "code"))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestGet(t *testing.T) {
	root := t.TempDir()
	c := New(filepath.Join(root, "made/when/needed"), 0)
	if got := content(t, get(t, c, key, writer("code"))); got != "code" {
		t.Errorf("content %q", got)
	}
	get(t, c, key, never)
	get(t, New(filepath.Join(root, "made/when/needed"), 0), key, never) // another process
	for name, other := range map[string]Key{
		"module": {"n", "e", "1"}, "engine": {"m", "f", "1"}, "version": {"m", "e", "2"}, "a shifted part": {"me", "", "1"},
	} {
		if got := content(t, get(t, c, other, writer(name))); got != name {
			t.Errorf("another %s: content %q", name, got)
		}
	}
	info, err := os.Stat(filepath.Join(root, "made/when/needed"))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the cache's directory: %v, %v", info.Mode(), err)
	}
}

func TestGetRepairs(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"changed":      func(dir string) error { return os.WriteFile(filepath.Join(dir, "code"), []byte("kode"), 0o600) },
		"cut short":    func(dir string) error { return os.Truncate(filepath.Join(dir, "code"), 1) },
		"gone":         func(dir string) error { return os.Remove(filepath.Join(dir, "code")) },
		"more":         func(dir string) error { return os.WriteFile(filepath.Join(dir, "more"), nil, 0o600) },
		"without list": func(dir string) error { return os.Remove(filepath.Join(dir, list)) },
		"all empty": func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "code")), os.Truncate(filepath.Join(dir, list), 0))
		},
		"no directory": func(dir string) error {
			return errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := New(t.TempDir(), 0)
			get(t, c, key, writer("code"))
			if err := damage(get(t, c, key, never)); err != nil { // it was verified
				t.Fatal(err)
			}
			if got := content(t, get(t, c, key, writer("made again"))); got != "made again" {
				t.Errorf("content %q", got)
			}
			get(t, c, key, never)
			tidy(t, c, 1)
		})
	}
}

// TestGetReadsOnce has an entry be damaged in a way that no file system tells:
// what was read by one cache is not read again by it, and is by another.
func TestGetReadsOnce(t *testing.T) {
	c := New(t.TempDir(), 0)
	dir := get(t, c, key, writer("code"))
	get(t, c, key, never)
	path := filepath.Join(dir, list)
	if err := os.WriteFile(path, bytes.Repeat([]byte("0"), int(size(dir))-len("code")), 0o600); err != nil {
		t.Fatal(err)
	}
	get(t, c, key, never)
	if got := content(t, get(t, New(c.dir, 0), key, writer("made again"))); got != "made again" {
		t.Errorf("another cache has %q", got)
	}
	get(t, c, key, never)
	if len(c.sound) != 1 {
		t.Errorf("%d entries are remembered", len(c.sound))
	}
}

// tidy holds that a cache has some entries and nothing else.
func tidy(t *testing.T, c *Cache, entries int) {
	t.Helper()
	names, err := os.ReadDir(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasPrefix(name.Name(), ".") {
			t.Errorf("%s is left", name.Name())
		}
	}
	if len(names) != entries {
		t.Errorf("%d entries, want %d", len(names), entries)
	}
}

func TestGetFails(t *testing.T) {
	c := New(t.TempDir(), 0)
	broken := errors.New("broken module")
	for name, compile := range map[string]Compile{
		"error":   func(dir string) error { return errors.Join(writer("half")(dir), broken) },
		"panic":   func(string) error { panic("compiler") },
		"nothing": func(string) error { return nil },
	} {
		if _, err := c.Get(t.Context(), key, compile); err == nil || name == "error" && !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
		tidy(t, c, 0)
	}
	get(t, c, key, writer("then it works"))
}

func TestGetCompilesOnce(t *testing.T) {
	c := New(t.TempDir(), 0)
	var compiled atomic.Int32
	var callers sync.WaitGroup
	for range 50 {
		callers.Go(func() {
			_, err := c.Get(t.Context(), key, func(dir string) error {
				compiled.Add(1)
				return writer("code")(dir)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	callers.Wait()
	if n := compiled.Load(); n != 1 {
		t.Errorf("compiled %d times", n)
	}
}

// TestProcesses fills a cache from several places at once, as after a restart
// of the worker: nobody sees half an entry.
func TestProcesses(t *testing.T) {
	dir := t.TempDir()
	large := strings.Repeat("code", 1<<16)
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for i := range 20 {
				k := Key{Module: strconv.Itoa(i)}
				entry, err := New(dir, 0).Get(t.Context(), k, writer(large))
				if err != nil {
					t.Error(err)
				} else if raw, err := os.ReadFile(filepath.Join(entry, "code")); err != nil || string(raw) != large {
					t.Errorf("%d bytes of %d: %v", len(raw), len(large), err)
				}
			}
		})
	}
	callers.Wait()
	tidy(t, New(dir, 0), 20)
}

// TestGetGoesOn holds that a compilation is not lost with who waits for it.
func TestGetGoesOn(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := New(dir, 0)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		slow := func(dir string) error {
			<-time.After(time.Minute)
			return writer("code")(dir)
		}
		if _, err := c.Get(ctx, key, slow); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		get(t, c, key, never)
	})
}

func TestEvict(t *testing.T) {
	const each = 1000
	c := New(t.TempDir(), 5*each)
	code := writer(string(bytes.Repeat([]byte("c"), each-200))) // and a list
	now := time.Now()
	dirs := make([]string, 8)
	for i := range dirs {
		dirs[i] = get(t, c, Key{Module: strconv.Itoa(i)}, code)
	}
	tidy(t, c, 8) // all were used within the last minute
	for i, dir := range dirs {
		used := now.Add(time.Duration(i-len(dirs)) * time.Hour)
		if err := os.Chtimes(filepath.Join(dir, list), used, used); err != nil {
			t.Fatal(err)
		}
	}
	get(t, c, Key{Module: "0"}, never) // the oldest is used again
	old := filepath.Join(c.dir, temporary+"old")
	young := filepath.Join(c.dir, temporary+"young")
	if err := errors.Join(os.Mkdir(old, 0o700), os.Mkdir(young, 0o700), os.Chtimes(old, now.Add(-2*abandoned), now.Add(-2*abandoned))); err != nil {
		t.Fatal(err)
	}
	get(t, c, Key{Module: "another"}, code)
	for path, want := range map[string]bool{dirs[0]: true, dirs[1]: false, dirs[2]: false, dirs[3]: false, dirs[7]: true, old: false, young: true} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s: %v, want it to be there: %t", path, err, want)
		}
	}
	var total int64
	for _, dir := range dirs {
		total += size(dir)
	}
	if total > 5*each {
		t.Errorf("%d bytes, the limit is %d", total, 5*each)
	}
}

func BenchmarkGet(b *testing.B) {
	c := New(b.TempDir(), 0)
	code := writer(string(bytes.Repeat([]byte("c"), 6<<20)))
	if _, err := c.Get(b.Context(), key, code); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := c.Get(b.Context(), key, never); err != nil {
			b.Fatal(err)
		}
	}
}
