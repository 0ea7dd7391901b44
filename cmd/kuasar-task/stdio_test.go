package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"
)

// stdin makes the FIFO of a process's input and opens it as a client does.
func (b *box) stdin(name string) (path string, w *os.File) {
	b.Helper()
	path = filepath.Join(b.bundle, name)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		b.Fatal(err)
	}
	w, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { w.Close() })
	return path, w
}

func (b *box) closeStdin(exec string) {
	b.Helper()
	ctx, cancel := b.ctx()
	defer cancel()
	if _, err := b.client.CloseIO(ctx, &taskapi.CloseIORequest{ID: b.id, ExecID: exec, Stdin: true}); err != nil {
		b.Fatal(err)
	}
}

func TestStdin(t *testing.T) {
	n := newNode(t)
	b := n.newBox("cat")
	path, w := b.stdin("stdin")
	b.req.Stdin = path
	b.run()
	if _, err := w.WriteString("one\ntwo\n"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	b.closeStdin("")
	if got := b.wait(""); got != 0 {
		t.Errorf("exit status %d", got)
	}
	if got := b.out.String(); got != "one\ntwo\n" {
		t.Errorf("output %q", got)
	}
}

func TestStdinClosedBeforeStart(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sleep", "1000").run()
	path, w := b.stdin("stdin")
	out := b.exec("e", func(r *taskapi.ExecProcessRequest) { r.Stdin = path }, "cat")
	if _, err := w.WriteString("early"); err != nil {
		t.Fatal(err)
	}
	b.closeStdin("e")
	b.startExec("e")
	w.Close()
	if got := b.wait("e"); got != 0 {
		t.Errorf("exit status %d", got)
	}
	if got := out.String(); got != "early" {
		t.Errorf("output %q", got)
	}
}

func TestStderrApart(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sh", "-c", "echo out; echo err >&2")
	errs := n.read(filepath.Join(b.bundle, "stderr"))
	b.req.Stderr = errs.path
	b.run()
	if b.out.String() != "out\n" || errs.String() != "err\n" {
		t.Errorf("stdout %q, stderr %q", b.out, errs)
	}
}

func TestAnotherUserReopensStdout(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sh", "-c", "echo hi > /proc/self/fd/1 && echo there > /proc/self/fd/2; id -u")
	errs := n.read(filepath.Join(b.bundle, "stderr"))
	b.req.Stderr = errs.path
	b.spec.Process.User.UID = 1234
	b.spec.Process.Capabilities = nil
	b.run()
	if b.out.String() != "hi\n1234\n" || errs.String() != "there\n" {
		t.Errorf("stdout %q, stderr %q", b.out, errs)
	}
}

func TestMuchOutput(t *testing.T) {
	n := newNode(t)
	const size = 8 << 20
	b := n.newBox("sh", "-c", "yes | head -c 8388608")
	b.run()
	if got := b.wait(""); got != 0 {
		t.Errorf("exit status %d", got)
	}
	if got := len(b.out.String()); got != size {
		t.Errorf("%d bytes of %d", got, size)
	}
}

func TestTerminal(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sh", "-c", "tty; stty size; read x; stty size; echo got $x; exit 4")
	path, w := b.stdin("stdin")
	b.req.Stdin, b.req.Terminal, b.spec.Process.Terminal = path, true, true
	b.create()
	b.resize("", 100, 40)
	b.start()
	// The first size is out when the second is set: read waits for a line.
	b.resize("", 120, 50)
	if _, err := w.WriteString("line\n"); err != nil {
		t.Fatal(err)
	}
	if got := b.wait(""); got != 4 {
		t.Errorf("exit status %d", got)
	}
	got := b.out.String()
	for _, want := range []string{"/dev/pts/0\r\n", "50 120\r\n", "got line\r\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("output %q lacks %q", got, want)
		}
	}
}

func (b *box) resize(exec string, width, height uint32) {
	b.Helper()
	ctx, cancel := b.ctx()
	defer cancel()
	r := &taskapi.ResizePtyRequest{ID: b.id, ExecID: exec, Width: width, Height: height}
	if _, err := b.client.ResizePty(ctx, r); err != nil {
		b.Fatal(err)
	}
}

func TestTerminalOfExec(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sleep", "1000").run()
	out := b.exec("e", func(r *taskapi.ExecProcessRequest) { r.Terminal = true }, "sh", "-c", "tty; yes | head -n 30000; exit 5")
	b.startExec("e")
	if got := b.awaitExit("e").Exit.Status; got != 5 {
		t.Errorf("exit status %d", got)
	}
	b.delete("e")
	got := out.String()
	if !strings.HasPrefix(got, "/dev/pts/0\r\n") || strings.Count(got, "y\r\n") != 30000 {
		t.Errorf("%d bytes: %.40q", len(got), got)
	}
	// Without a terminal there is nothing to resize.
	ctx, cancel := n.ctx()
	defer cancel()
	_, err := n.client.ResizePty(ctx, &taskapi.ResizePtyRequest{ID: b.id, Width: 1, Height: 1})
	if !errdefs.IsFailedPrecondition(errgrpc.ToNative(err)) {
		t.Errorf("resize: %v", err)
	}
}
