package cgroup

import (
	"bytes"
	"maps"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func write(t *testing.T, content string) (dir, name string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, "f"
}

func TestRead(t *testing.T) {
	for _, size := range []int{0, 1, 4095, 4096, 4097, 100_000} {
		want := strings.Repeat("x", size)
		dir, name := write(t, want)
		for _, buf := range [][]byte{nil, make([]byte, 7, 10)} {
			got, err := Read(dir, name, buf)
			if err != nil || string(got) != want {
				t.Errorf("%d bytes: got %d, %v", size, len(got), err)
			}
		}
	}
	dir, name := write(t, strings.Repeat("x", maxFile+1))
	if _, err := Read(dir, name, nil); !errdefs.IsResourceExhausted(err) {
		t.Errorf("too long: got %v", err)
	}
	for _, missing := range []string{dir + "/none", dir + "/f"} {
		if _, err := Read(missing, name, nil); !errdefs.IsNotFound(err) {
			t.Errorf("missing: got %v", err)
		}
	}
	if _, err := Read(dir, "", nil); err == nil || errdefs.IsNotFound(err) {
		t.Errorf("directory: got %v", err)
	}
}

func TestUint(t *testing.T) {
	for in, want := range map[string]uint64{"0\n": 0, "42\n": 42, "max\n": math.MaxUint64, "-1\n": 0, "18446744073709551615": math.MaxUint64} {
		dir, name := write(t, in)
		if got, err := Uint(dir, name); err != nil || got != want {
			t.Errorf("%q: got %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "x", "1 2", "18446744073709551616"} {
		dir, name := write(t, in)
		if _, err := Uint(dir, name); !errdefs.IsDataLoss(err) {
			t.Errorf("%q: got %v", in, err)
		}
	}
}

func TestKeyed(t *testing.T) {
	got := map[string]uint64{}
	for key, v := range Keyed([]byte("low 0\noom_kill 7\n\nodd\nN0=1 x\nthree 1 2\nlast max")) {
		got[string(key)] = v
	}
	want := map[string]uint64{"low": 0, "oom_kill": 7, "last": math.MaxUint64}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func FuzzKeyed(f *testing.F) {
	f.Add([]byte("a 1\nb max\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for key := range Keyed(b) {
			if !bytes.Contains(b, key) {
				t.Errorf("%q is not in %q", key, b)
			}
		}
	})
}
