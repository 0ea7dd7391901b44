package vmm

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
)

// shelf are templates with no machines.
type shelf struct {
	*testing.T
	dir    string
	reaper *pidfd.Reaper
	*Templates
}

func newShelf(t *testing.T) *shelf {
	t.Helper()
	r, err := pidfd.NewReaper()
	if err != nil {
		t.Fatal(err)
	}
	s := &shelf{T: t, dir: filepath.Join(t.TempDir(), "templates"), reaper: r}
	s.open()
	t.Cleanup(func() {
		if err := s.Templates.Close(); err != nil {
			t.Error(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// open is the next daemon.
func (s *shelf) open() {
	s.Helper()
	var err error
	if s.Templates, err = OpenTemplates(s.Context(), s.dir, s.reaper); err != nil {
		s.Fatal(err)
	}
}

// add keeps a template that was used so many seconds after the first.
func (s *shelf) add(key, shape string, after int, bytes int64) *saved {
	s.Helper()
	n := &saved{
		key: key, dir: filepath.Join(s.dir, key), bytes: bytes, turn: make(chan struct{}, 1),
		used: time.Unix(int64(after), 0), note: note{Key: key, Shape: shape},
	}
	if err := os.Mkdir(n.dir, 0o700); err != nil {
		s.Fatal(err)
	}
	if err := record.Write(filepath.Join(n.dir, noteFile), n.note); err != nil {
		s.Fatal(err)
	}
	if err := s.keep(n); err != nil {
		s.Fatal(err)
	}
	return n
}

// has says which there shall be, and no more than their files.
func (s *shelf) has(want ...string) {
	s.Helper()
	want = slices.Sorted(slices.Values(want))
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		s.Fatal(err)
	}
	var files []string
	for _, e := range entries {
		files = append(files, e.Name())
	}
	if got := s.Keys(); !slices.Equal(got, want) || !slices.Equal(files, want) {
		s.Errorf("templates %q, files %q, want %q", got, files, want)
	}
}

func TestTemplatesAreBounded(t *testing.T) {
	s := newShelf(t)
	var want []string
	for i := range maxTemplates {
		key := fmt.Sprint("t", i)
		s.add(key, key, 100-i, 1) // the first is the newest
		want = append(want, key)
	}
	s.has(want...)
	s.add("more", "more", 200, 1)
	want = append(want[:maxTemplates-1], "more")
	s.has(want...)
	s.add("changed", "t0", 201, 1) // takes the place of what has the same shape
	want[0] = "changed"
	s.has(want...)

	// What is in use stays.
	s.known["t1"].users++
	s.add("large", "large", 202, maxTemplateBytes)
	s.has("large", "t1")
	s.pass(s.known["t1"])
	s.add("last", "last", 203, 1)
	s.has("last", "t1")
}

// What an earlier daemon left is removed, unless it is whole and of this boot.
func TestTemplatesLeft(t *testing.T) {
	s := newShelf(t)
	s.add("whole", "whole", 1, 1)
	for name, content := range map[string]string{"new-one": "", "old-one": "", "broken": "{", "other": `{"key": "another"}`} {
		dir := filepath.Join(s.dir, name)
		if err := os.MkdirAll(filepath.Join(dir, "saved"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, noteFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(s.dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.open()
	s.has("whole")
}
