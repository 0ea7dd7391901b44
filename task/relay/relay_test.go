package relay

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pipe is a stream under test: a writer as the container has it, and the FIFO
// as containerd opens it.
type pipe struct {
	*Stream
	writer *os.File
	fifo   string
}

func newPipe(t testing.TB, r *Relay) pipe {
	t.Helper()
	dir := t.TempDir()
	open := func(name string, flags int) *os.File {
		path := filepath.Join(dir, name)
		if err := unix.Mkfifo(path, 0o600); err != nil && err != unix.EEXIST {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	writer := open("source", os.O_RDWR)
	source := open("source", os.O_RDONLY|unix.O_NONBLOCK)
	sink := open("sink", os.O_RDWR|unix.O_NONBLOCK)
	s, err := r.Add(source, sink)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return pipe{Stream: s, writer: writer, fifo: filepath.Join(dir, "sink")}
}

func (p pipe) reader(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Open(p.fifo)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func (p pipe) retained(t testing.TB) (string, bool) {
	t.Helper()
	b, complete, err := p.Retained()
	if err != nil {
		t.Fatal(err)
	}
	return string(b), complete
}

func newRelay(t testing.TB) *Relay {
	t.Helper()
	r, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func wait(t testing.TB, s *Stream) {
	t.Helper()
	select {
	case <-s.Drained():
	case <-time.After(20 * time.Second):
		t.Fatal("stream does not end")
	}
}

func TestAllBytesArriveInOrder(t *testing.T) {
	for _, size := range []int{1, 100, 4096, 65536, 100_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			p := newPipe(t, newRelay(t))
			want := make([]byte, min(size*2000, 8<<20))
			_, _ = rand.Read(want)
			reader := p.reader(t)
			go func() {
				for b := want; len(b) > 0; b = b[min(size, len(b)):] {
					if _, err := p.writer.Write(b[:min(size, len(b))]); err != nil {
						t.Error(err)
					}
				}
				p.writer.Close()
			}()
			got, err := io.ReadAll(reader)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("got %d bytes of %d, error %v", len(got), len(want), err)
			}
			wait(t, p.Stream)
			kept, _ := p.retained(t)
			if len(kept) < min(len(want), Keep*3/4) || !bytes.HasSuffix(want, []byte(kept)) {
				at := bytes.Index(want, []byte(kept[:min(64, len(kept))]))
				t.Fatalf("kept %d bytes, which are not the newest: found at %d of %d", len(kept), at, len(want))
			}
		})
	}
}

// A reader that dies with bytes in hand must find them again.
func TestWhatALostReaderHadIsRetained(t *testing.T) {
	p := newPipe(t, newRelay(t))
	reader := p.reader(t)
	write := func(s string) {
		if _, err := p.writer.WriteString(s); err != nil {
			t.Fatal(err)
		}
	}
	write("read by the first reader\n")
	buf := make([]byte, 100)
	n, err := reader.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	reader.Close()

	write("written meanwhile\n")
	p.writer.Close()
	wait(t, p.Stream) // the FIFO is gone with its last descriptor
	got, complete := p.retained(t)
	if want := string(buf[:n]) + "written meanwhile\n"; got != want || !complete {
		t.Fatalf("retained %q, complete %v; want %q, true", got, complete, want)
	}
}

func TestUnreadBytesAreNotRetainedTwice(t *testing.T) {
	p := newPipe(t, newRelay(t))
	reader := p.reader(t)
	buf := make([]byte, 4)
	if _, err := p.writer.WriteString("seen"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(reader, buf); err != nil {
		t.Fatal(err)
	}
	if _, err := p.writer.WriteString("waiting"); err != nil {
		t.Fatal(err)
	}
	poll := []unix.PollFd{{Fd: int32(reader.Fd()), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, 10_000); n != 1 || err != nil {
		t.Fatal("the second write does not arrive", err)
	}
	for range 2 { // asking changes nothing
		if got, complete := p.retained(t); got != "seen" || !complete {
			t.Fatalf("retained %q, complete %v", got, complete)
		}
	}
}

// With nobody to read it, output is in three places: kept, in the FIFO and in
// the source.
func TestFinish(t *testing.T) {
	p := newPipe(t, newRelay(t))
	var want strings.Builder
	for i := range 6000 {
		fmt.Fprintf(&want, "line %d of an output that no pipe holds whole\n", i)
	}
	if _, err := unix.FcntlInt(p.writer.Fd(), unix.F_SETPIPE_SZ, 1<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := p.writer.WriteString(want.String()); err != nil {
		t.Fatal(err)
	}
	p.writer.Close()
	for range 2 {
		got, complete, err := p.Finish()
		if err != nil || !complete || string(got) != want.String() {
			t.Fatalf("got %d bytes of %d, complete %v, error %v", len(got), want.Len(), complete, err)
		}
	}
	wait(t, p.Stream)
}

// Bytes that wait in the source because the FIFO is full are kept already, but
// they are not lost and so not retained.
func TestFullSink(t *testing.T) {
	p := newPipe(t, newRelay(t))
	want := strings.Repeat("0123456789abcdef", 16<<10) // 256 KiB: source and FIFO hold 64 each
	go func() {
		_, _ = p.writer.WriteString(want)
		p.writer.Close()
	}()
	reader := p.reader(t)
	first := make([]byte, 1000)
	if _, err := io.ReadFull(reader, first); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(reader)
	if err != nil || string(first)+string(rest) != want {
		t.Fatalf("got %d bytes, want %d (%v)", len(first)+len(rest), len(want), err)
	}
}

// One byte a write fills a pipe with nearly empty pages.
func TestUnfinishedLineOfManySmallWrites(t *testing.T) {
	p := newPipe(t, newRelay(t))
	reader := p.reader(t)
	buf := make([]byte, 1)
	const dots = 2000
	for range dots {
		if _, err := p.writer.WriteString("."); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(reader, buf); err != nil {
			t.Fatal(err)
		}
	}
	if got, _ := p.retained(t); len(got) < 1000 || strings.Trim(got, ".") != "" {
		t.Fatalf("retained %d dots of %d", len(got), dots)
	}
}

func TestCloseLeaksNothing(t *testing.T) {
	before := descriptors(t)
	r, err := New()
	if err != nil {
		t.Fatal(err)
	}
	var streams []*Stream
	for range 10 {
		p := newPipe(t, r)
		p.writer.Close()
		streams = append(streams, p.Stream)
	}
	open := newPipe(t, r)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	wait(t, open.Stream)
	open.writer.Close()
	for _, s := range streams {
		wait(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := open.Stream.Close(); err != nil {
		t.Fatal(err)
	}
	if got := descriptors(t); got != before {
		t.Fatalf("%d descriptors, %d before", got, before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func BenchmarkRelay(b *testing.B) {
	p := newPipe(b, newRelay(b))
	reader := p.reader(b)
	buf := make([]byte, 32<<10)
	b.SetBytes(int64(len(buf)))
	go func() {
		for range b.N {
			_, _ = p.writer.Write(buf)
		}
		p.writer.Close()
	}()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{reader}, buf)
	if err != nil || n != int64(b.N*len(buf)) {
		b.Fatal(n, err)
	}
}
