package stdio

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
)

func host(t testing.TB) *Host {
	t.Helper()
	r, err := pidfd.NewReaper()
	if err != nil {
		t.Fatal(err)
	}
	h, err := NewHost(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(h.Close(), r.Close()); err != nil {
			t.Error(err)
		}
	})
	return h
}

func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func mkfifo(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := unix.Mkfifo(path, 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// read2end is a client: it opens the FIFO, waiting for a writer, and reads to
// the end.
func read2end(t testing.TB, path string) <-chan []byte {
	all := make(chan []byte, 1)
	go func() {
		f, err := os.Open(path) // blocks until there is a writer
		if err != nil {
			t.Error(err)
			close(all)
			return
		}
		defer f.Close()
		b, err := io.ReadAll(f)
		if err != nil {
			t.Error(err)
		}
		all <- b
	}()
	return all
}

func expect(t testing.TB, all <-chan []byte, want string) {
	t.Helper()
	select {
	case b := <-all:
		if string(b) != want {
			t.Errorf("read %d bytes %.80q, want %d %.80q", len(b), b, len(want), want)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("reader sees no end")
	}
}

// attach opens a FIFO for reading without waiting for a writer.
func attach(t testing.TB, path string) *os.File {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), path)
	t.Cleanup(func() { f.Close() })
	return f
}

// ended says whether the FIFO is empty and has no writer.
func ended(t testing.TB, f *os.File) bool {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, 0); err != nil {
		t.Fatal(err)
	}
	return fds[0].Revents&unix.POLLHUP != 0 && fds[0].Revents&unix.POLLIN == 0
}

// start runs a shell script as the process of io, as an agent does.
func start(t testing.TB, sio IO, script string, attr *syscall.SysProcAttr) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", script)
	in, out, err := sio.Files()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, err
	cmd.SysProcAttr = attr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	sio.Started()
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

func open(t testing.TB, h *Host, cfg Config) IO {
	t.Helper()
	sio, err := h.Open(bounded(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sio.Close(); err != nil {
			t.Error(err)
		}
	})
	return sio
}

func wait(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

func exited(t testing.TB, sio IO) {
	t.Helper()
	if err := sio.Exited(bounded(t)); err != nil {
		t.Fatal(err)
	}
}

func descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestOutputGoesToItsReaders(t *testing.T) {
	h := host(t)
	out, errs := mkfifo(t, "out"), mkfifo(t, "err")
	stdout, stderr := read2end(t, out), read2end(t, errs)
	sio := open(t, h, Config{Stdout: out, Stderr: errs})
	cmd := start(t, sio, "echo to stdout; echo to stderr >&2", nil)
	wait(t, cmd)
	exited(t, sio)
	expect(t, stdout, "to stdout\n")
	expect(t, stderr, "to stderr\n")
}

func TestBothOutputsInOneFIFO(t *testing.T) {
	h := host(t)
	out := mkfifo(t, "out")
	all := read2end(t, out)
	sio := open(t, h, Config{Stdout: out, Stderr: out})
	cmd := start(t, sio, "echo 1; echo 2 >&2; echo 3", nil)
	wait(t, cmd)
	exited(t, sio)
	expect(t, all, "1\n2\n3\n")
}

func TestReaderSeesTheEndWithTheLastProcess(t *testing.T) {
	h := host(t)
	out := mkfifo(t, "out")
	client := attach(t, out)
	sio := open(t, h, Config{Stdout: out})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command("/bin/sh", "-c", "(read x <&3; echo child) & echo parent")
	cmd.ExtraFiles = []*os.File{r}
	_, cmd.Stdout, _ = sio.Files()
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	sio.Started()
	exited(t, sio)
	b := make([]byte, 7)
	if _, err := io.ReadFull(client, b); err != nil || string(b) != "parent\n" {
		t.Fatalf("%q, %v", b, err)
	}
	if ended(t, client) {
		t.Error("the output ended before the last process did")
	}
	w.Close()
	rest, err := io.ReadAll(client)
	if err != nil || string(rest) != "child\n" {
		t.Errorf("%q, %v", rest, err)
	}
}

func TestProcessOutlivesItsReader(t *testing.T) {
	h := host(t)
	in, out := mkfifo(t, "in"), mkfifo(t, "out")
	client := attach(t, out)
	sio := open(t, h, Config{Stdin: in, Stdout: out})
	stdin, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	cmd := start(t, sio, "echo one; read x; echo two; read x; echo three", nil)
	b := make([]byte, 4)
	if _, err := io.ReadFull(client, b); err != nil {
		t.Fatal(err)
	}
	client.Close() // containerd dies
	if _, err := stdin.WriteString("\n\n"); err != nil {
		t.Fatal(err)
	}
	wait(t, cmd) // and SIGPIPE did not end it
	exited(t, sio)
	expect(t, read2end(t, out), "two\nthree\n")
}

// Nobody but the process has the FIFO open: it must not get SIGPIPE.
func TestProcessOutlivesReaderAndAgent(t *testing.T) {
	h := host(t)
	in, out := mkfifo(t, "in"), mkfifo(t, "out")
	client := attach(t, out)
	sio := open(t, h, Config{Stdin: in, Stdout: out})
	cmd := start(t, sio, "read x; echo one; echo two", nil)
	w, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	client.Close()
	if err := sio.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString("\n"); err != nil {
		t.Fatal(err)
	}
	wait(t, cmd)
}

func TestUnreadOutputIsKept(t *testing.T) {
	for _, tt := range []struct {
		name string
		size int // 64 KiB fill the FIFO
	}{{"one byte", 1}, {"full", 64 << 10}} {
		t.Run(tt.name, func(t *testing.T) {
			h := host(t)
			out := mkfifo(t, "out")
			client := attach(t, out)
			sio := open(t, h, Config{Stdout: out})
			client.Close()
			before := descriptors(t)
			cmd := start(t, sio, "head -c "+strconv.Itoa(tt.size)+" /dev/zero", nil)
			wait(t, cmd)
			exited(t, sio)
			want := strings.Repeat("\x00", tt.size)
			expect(t, read2end(t, out), want)
			if err := sio.Close(); err != nil {
				t.Fatal(err)
			}
			// Without an IO there is nothing to hold the FIFO's end open.
			if after := descriptors(t); after >= before {
				t.Errorf("%d descriptors, had %d while it ran", after, before)
			}
		})
	}
}

// A reader that is there all along sees the end too when it reads only after
// the exit.
func TestSlowReaderSeesTheEnd(t *testing.T) {
	h := host(t)
	out := mkfifo(t, "out")
	client := attach(t, out)
	sio := open(t, h, Config{Stdout: out})
	wait(t, start(t, sio, "echo late", nil))
	exited(t, sio)
	b := make([]byte, 3)
	if _, err := io.ReadFull(client, b); err != nil || string(b) != "lat" {
		t.Fatalf("%q, %v", b, err)
	}
	rest, err := io.ReadAll(client)
	if err != nil || string(rest) != "e\n" {
		t.Errorf("%q, %v", rest, err)
	}
}

// A client that comes, goes away with half of it, and comes again.
func TestKeptOutputSurvivesASecondReader(t *testing.T) {
	h := host(t)
	out := mkfifo(t, "out")
	client := attach(t, out)
	sio := open(t, h, Config{Stdout: out})
	wait(t, start(t, sio, "echo 12345", nil))
	exited(t, sio)
	b := make([]byte, 3)
	if _, err := io.ReadFull(client, b); err != nil {
		t.Fatal(err)
	}
	client.Close()
	expect(t, read2end(t, out), "45\n")
}

func TestCloseGivesKeptOutputUp(t *testing.T) {
	h := host(t)
	out := mkfifo(t, "out")
	client := attach(t, out)
	sio := open(t, h, Config{Stdout: out})
	wait(t, start(t, sio, "echo unread", nil))
	exited(t, sio)
	if err := sio.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(client) // has it open, so gets all, and the end
	if err != nil || string(b) != "unread\n" {
		t.Errorf("%q, %v", b, err)
	}
	if n := len(h.kept.outputs); n != 0 {
		t.Errorf("%d outputs are still kept", n)
	}
}

func TestOpenWaitsForAReader(t *testing.T) {
	h := host(t)
	out := mkfifo(t, "out")
	done := make(chan IO)
	go func() {
		sio, err := h.Open(bounded(t), Config{Stdout: out})
		if err != nil {
			t.Error(err)
		}
		done <- sio
	}()
	// This open in turn waits for the other one: neither gets on alone.
	client, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	sio := <-done
	wait(t, start(t, sio, "echo hello", nil))
	exited(t, sio)
	b, err := io.ReadAll(client)
	if err != nil || string(b) != "hello\n" {
		t.Errorf("%q, %v", b, err)
	}
	if err := sio.Close(); err != nil {
		t.Error(err)
	}
}

func TestOpenGivesUpWithItsContext(t *testing.T) {
	h := host(t)
	out := mkfifo(t, "out")
	before := descriptors(t)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, err := h.Open(ctx, Config{Stdout: out})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), out) {
		t.Errorf("got %v", err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, had %d", after, before)
	}
}

func TestFilesAreBlockingAndTheProcesssOwn(t *testing.T) {
	h := host(t)
	in, out := mkfifo(t, "in"), mkfifo(t, "out")
	attach(t, out)
	sio := open(t, h, Config{Stdin: in, Stdout: out})
	stdin, stdout, stderr := sio.Files()
	for _, f := range []*os.File{stdin, stdout, stderr} {
		flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
		if err != nil {
			t.Fatal(err)
		}
		if flags&unix.O_NONBLOCK != 0 {
			t.Errorf("%s does not block", f.Name())
		}
		// What the process does to its description is not seen by ours.
		if err := unix.SetNonblock(int(f.Fd()), true); err != nil {
			t.Fatal(err)
		}
	}
	p := sio.(*process)
	reader, err := unix.FcntlInt(uintptr(p.ends[1].reader), unix.F_GETFL, 0)
	if err != nil {
		t.Fatal(err)
	}
	if reader&unix.O_ACCMODE != unix.O_RDONLY {
		t.Error("the agent's end is a writer: the reader would see no end")
	}
	again, err := h.Reopen(bounded(t), Config{Stdin: in, Stdout: out}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if a, b, c := again.Files(); a != nil || b != nil || c != nil {
		t.Error("reopened stdio has files for a process")
	}
	again.Close()
}

// libcontainer gives stdio to the container's user, who may then open
// /dev/stdout as any program with a log file does.
func TestUnprivilegedProcessReopensItsOutput(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	h := host(t)
	out, errs := mkfifo(t, "out"), mkfifo(t, "err")
	stdout, stderr := read2end(t, out), read2end(t, errs)
	sio := open(t, h, Config{Stdout: out, Stderr: errs})
	_, o, e := sio.Files()
	for _, f := range []*os.File{o, e} {
		if err := f.Chown(65534, -1); err != nil {
			t.Fatal(err)
		}
	}
	user := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	wait(t, start(t, sio, "echo one; echo two > /dev/stdout; echo three >> /proc/self/fd/1; echo four > /dev/stderr", user))
	exited(t, sio)
	expect(t, stdout, "one\ntwo\nthree\n")
	expect(t, stderr, "four\n")
}

func TestStdinEndsWithCloseStdin(t *testing.T) {
	h := host(t)
	in, out := mkfifo(t, "in"), mkfifo(t, "out")
	all := read2end(t, out)
	sio := open(t, h, Config{Stdin: in, Stdout: out})
	cmd := start(t, sio, "cat", nil)
	for _, word := range []string{"first ", "second"} { // clients come and go
		w, err := os.OpenFile(in, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteString(word); err != nil {
			t.Fatal(err)
		}
		w.Close()
	}
	if err := sio.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	if err := sio.CloseStdin(); err != nil {
		t.Errorf("second: %v", err)
	}
	wait(t, cmd)
	exited(t, sio)
	expect(t, all, "first second")
}

func TestStdinLastsAsLongAsAClientHasIt(t *testing.T) {
	h := host(t)
	in, out := mkfifo(t, "in"), mkfifo(t, "out")
	all := read2end(t, out)
	sio := open(t, h, Config{Stdin: in, Stdout: out})
	cmd := start(t, sio, "cat", nil)
	w, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := sio.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString("after CloseStdin"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	wait(t, cmd)
	exited(t, sio)
	expect(t, all, "after CloseStdin")
}

func TestWritersAreToldThatTheProcessIsGone(t *testing.T) {
	h := host(t)
	in := mkfifo(t, "in")
	sio := open(t, h, Config{Stdin: in})
	w, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	wait(t, start(t, sio, "exit 0", nil))
	exited(t, sio)
	if _, err := w.WriteString("x"); !errors.Is(err, unix.EPIPE) {
		t.Errorf("got %v, want EPIPE", err)
	}
}

func TestNothingIsDevNull(t *testing.T) {
	h := host(t)
	sio := open(t, h, Config{})
	wait(t, start(t, sio, "cat && echo x && echo y >&2", nil))
	exited(t, sio)
	if err := sio.Resize(1, 1); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("resize: got %v", err)
	}
}

func TestBadNames(t *testing.T) {
	h := host(t)
	dir := t.TempDir()
	regular := filepath.Join(dir, "regular")
	if err := os.WriteFile(regular, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	out := mkfifo(t, "out")
	attach(t, out)
	for _, tt := range []struct {
		name string
		cfg  Config
		is   func(error) bool
	}{
		{"scheme", Config{Stdout: "http://example.com/x"}, errdefs.IsInvalidArgument},
		{"relative", Config{Stdout: "out"}, errdefs.IsInvalidArgument},
		{"relative file", Config{Stdout: "file:out"}, errdefs.IsInvalidArgument},
		{"host", Config{Stdout: "file://host/x"}, errdefs.IsInvalidArgument},
		{"unparsable", Config{Stdout: "file://%zz"}, errdefs.IsInvalidArgument},
		{"missing", Config{Stdout: dir + "/none"}, errdefs.IsNotFound},
		{"missing stdin", Config{Stdin: dir + "/none", Stdout: out}, errdefs.IsNotFound},
		{"directory", Config{Stdout: dir}, errdefs.IsInvalidArgument},
		{"log is a directory", Config{Stdout: "file://" + dir}, func(err error) bool { return err != nil }},
		{"log is a FIFO", Config{Stdout: "file://" + out}, errdefs.IsInvalidArgument},
		{"stdin is a file", Config{Stdin: regular}, errdefs.IsInvalidArgument},
		{"stdin is a log", Config{Stdin: "file://" + regular}, errdefs.IsInvalidArgument},
		{"stderr after stdout", Config{Stdout: out, Stderr: dir + "/none"}, errdefs.IsNotFound},
		{"no program", Config{Stdout: "binary://" + dir + "/none"}, func(err error) bool { return errors.Is(err, os.ErrNotExist) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := descriptors(t)
			if _, err := h.Open(bounded(t), tt.cfg); !tt.is(err) {
				t.Errorf("got %v", err)
			}
			if after := descriptors(t); after != before {
				t.Errorf("%d descriptors, had %d", after, before)
			}
		})
	}
}

func TestReopen(t *testing.T) {
	h := host(t)
	in, out := mkfifo(t, "in"), mkfifo(t, "out")
	client := attach(t, out)
	cfg := Config{Stdin: in, Stdout: out}
	first := open(t, h, cfg)
	cmd := start(t, first, "cat; echo bye", nil)
	again, err := h.Reopen(bounded(t), cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil { // the first agent dies
		t.Fatal(err)
	}
	client.Close()
	w, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString("hello "); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := again.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	wait(t, cmd)
	exited(t, again)
	expect(t, read2end(t, out), "hello bye\n")
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func TestReopenLeavesOutWhatIsGone(t *testing.T) {
	h := host(t)
	dir := t.TempDir()
	before := descriptors(t)
	for _, cfg := range []Config{
		{Stdin: dir + "/in", Stdout: dir + "/out", Stderr: dir + "/err"},
		{Stdin: dir + "/in", Stdout: dir + "/out", Terminal: true},
		{Stdout: "file://" + dir + "/log", Stderr: "file://" + dir + "/log"},
		{Stdin: mkfifo(t, "nobody reads")},
		{Stdin: dir + "/in", StdinClosed: true},
	} {
		sio, err := h.Reopen(bounded(t), cfg, nil)
		if err != nil {
			t.Errorf("%+v: %v", cfg, err)
			continue
		}
		exited(t, sio)
		if err := sio.Close(); err != nil {
			t.Error(err)
		}
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, had %d", after, before)
	}
}

func TestCloseBeforeStartEndsTheReader(t *testing.T) {
	h := host(t)
	out := mkfifo(t, "out")
	client := attach(t, out)
	before := descriptors(t)
	sio := open(t, h, Config{Stdout: out})
	if ended(t, client) {
		t.Error("the output ended before Close")
	}
	if err := sio.Close(); err != nil {
		t.Fatal(err)
	}
	if err := sio.Close(); err != nil {
		t.Errorf("second: %v", err)
	}
	exited(t, sio)
	if !ended(t, client) {
		t.Error("the output did not end")
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, had %d", after, before)
	}
}
