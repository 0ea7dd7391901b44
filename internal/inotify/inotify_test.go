package inotify

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestInstance(t *testing.T) {
	i, err := New()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	var watches []int32
	for _, path := range []string{a, b} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		w, err := i.Add(path, unix.IN_MODIFY)
		if err != nil {
			t.Fatal(err)
		}
		watches = append(watches, w)
	}
	inDir, err := i.Add(dir, unix.IN_CREATE) // events with names
	if err != nil {
		t.Fatal(err)
	}
	if again, err := i.Add(a, unix.IN_MODIFY); err != nil || again != watches[0] {
		t.Errorf("again: %d, %v, was %d", again, err, watches[0])
	}
	if _, err := i.Add(filepath.Join(dir, "none"), unix.IN_MODIFY); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: got %v", err)
	}
	i.Remove(watches[0])
	for _, path := range []string{a, b, filepath.Join(dir, "a file with a long name")} {
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got := map[int32]uint32{}
	for watch, mask := range i.Read(make([]byte, 64)) {
		got[watch] |= mask
	}
	if got[watches[0]] != unix.IN_IGNORED || got[watches[1]] != unix.IN_MODIFY || got[inDir] != unix.IN_CREATE {
		t.Errorf("got %v for %v and %d", got, watches, inDir)
	}
	for watch, mask := range i.Read(make([]byte, 64)) {
		t.Errorf("again %d %#x", watch, mask)
	}
	if err := i.Close(); err != nil {
		t.Error(err)
	}
}

func FuzzRecords(f *testing.F) {
	f.Add(make([]byte, 48))
	f.Add([]byte{1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		for range records(b) {
			n++
		}
		if n > len(b)/unix.SizeofInotifyEvent {
			t.Errorf("%d records in %d bytes", n, len(b))
		}
	})
}
