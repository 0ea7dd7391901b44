package stdio

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

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
