package vmm

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
)

// mapped is memory that this process has mapped, as a VMM does.
func mapped(t *testing.T, size uint64) (*RAM, []byte) {
	t.Helper()
	r, err := NewRAM(size)
	if err != nil {
		t.Fatal(err)
	}
	b, err := unix.Mmap(int(r.File().Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(b); err != nil {
			t.Error(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r, b
}

func self(t *testing.T) Process {
	t.Helper()
	start, err := pidfd.StartTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	return Process{Pid: os.Getpid(), Start: start}
}

// What one machine has in its memory its clone has, and the file is as large as
// what is not zero.
func TestRAM(t *testing.T) {
	const size = 24 << 20 // more than is written in one call
	one, from := mapped(t, size)
	for _, at := range []int{0, 5 * page, 6*page - 1, 3 << 20, size - 1} {
		from[at] = byte(at%251 + 1)
	}
	for i := 8 << 20; i < 20<<20; i++ {
		from[i] = byte(i%250 + 1)
	}
	from[7<<20], from[7<<20] = 1, 0 // a page that there is, and that is zero
	path := filepath.Join(t.TempDir(), "memory")
	if err := one.Save(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if took := st.Blocks * 512; st.Size != size || took > 13<<20 {
		t.Errorf("the file has %d bytes and takes %d", st.Size, took)
	}
	other, to := mapped(t, size)
	if err := other.Fill(t.Context(), self(t), path); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(from, to) {
		t.Error("the memory differs")
	}
}

func TestRAMFails(t *testing.T) {
	r, _ := mapped(t, 1<<20)
	path := filepath.Join(t.TempDir(), "memory")
	if err := r.Save(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if err := r.Save(t.Context(), path); err == nil {
		t.Error("it was written over what there is")
	}
	other, _ := mapped(t, 2<<20)
	if err := other.Fill(t.Context(), self(t), path); !errdefs.IsDataLoss(err) {
		t.Errorf("memory of another size: %v", err)
	}
	unmapped, err := NewRAM(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer unmapped.Close()
	if err := unmapped.Fill(t.Context(), self(t), path); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("memory that the process has not: %v", err)
	}
	stranger := self(t)
	stranger.Start++
	if err := r.Fill(t.Context(), stranger, path); !errdefs.IsUnavailable(err) {
		t.Errorf("another process of that id: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Fill(ended, self(t), path); err == nil {
		t.Error("it was not given up")
	}
}

func TestSum(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, b []byte, size int64) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		return path
	}
	must := func(path string) string {
		t.Helper()
		s, id, err := sum(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if now, err := identify(path); err != nil || now != id {
			t.Errorf("identity %v is %v, %v", id, now, err)
		}
		return s
	}
	text := bytes.Repeat([]byte("text"), 3000)
	one := must(write("one", text, 1<<20))
	if other := must(write("other", append(bytes.Clone(text), make([]byte, 1<<20-len(text))...), 1<<20)); other != one {
		t.Error("a hole is not like zeros")
	}
	text[5000]++
	if other := must(write("other", text, 1<<20)); other == one {
		t.Error("another content has the same sum")
	}
	text[5000]--
	if other := must(write("other", append(make([]byte, page), text...), 1<<20)); other == one {
		t.Error("the same content elsewhere has the same sum")
	}
	for _, path := range []string{"/dev/null", "/dev/zero", dir} {
		if _, _, err := sum(t.Context(), path); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
