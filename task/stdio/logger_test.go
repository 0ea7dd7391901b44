package stdio

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func content(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestLogFile(t *testing.T) {
	h := host(t)
	log := filepath.Join(t.TempDir(), "new", "log") // makes its directory
	for range 2 {
		sio := open(t, h, Config{Stdout: "file://" + log, Stderr: "file://" + log})
		wait(t, start(t, sio, "echo one; echo two >&2; echo three > /dev/stdout", nil))
		exited(t, sio)
		if err := sio.Close(); err != nil {
			t.Fatal(err)
		}
	}
	const each = "one\ntwo\nthree\n"
	if got := content(t, log); got != each+each {
		t.Errorf("log is %q", got)
	}
	entries, err := os.ReadDir(filepath.Dir(log))
	if err != nil || len(entries) != 1 {
		t.Errorf("beside the log: %v, %v", entries, err)
	}
}

func TestTwoLogFiles(t *testing.T) {
	h := host(t)
	dir := t.TempDir()
	regular := filepath.Join(dir, "err") // named by its path, it must exist
	if err := os.WriteFile(regular, []byte("zero\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	sio := open(t, h, Config{Stdout: "file://" + dir + "/out", Stderr: regular})
	wait(t, start(t, sio, "echo one; echo two >&2", nil))
	exited(t, sio)
	if got := content(t, dir+"/out"); got != "one\n" {
		t.Errorf("stdout is %q", got)
	}
	if got := content(t, regular); got != "zero\ntwo\n" {
		t.Errorf("stderr is %q", got)
	}
}

// A process that had the file could change its owner and its mode.
func TestLogFileIsNotTheProcesss(t *testing.T) {
	h := host(t)
	log := filepath.Join(t.TempDir(), "log")
	sio := open(t, h, Config{Stdout: "file://" + log})
	_, stdout, _ := sio.Files()
	if err := errors.Join(stdout.Chown(12345, -1), stdout.Chmod(0o4777)); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(log)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o644 {
		t.Errorf("mode is %v", info.Mode())
	}
}

func TestLogFileReopened(t *testing.T) {
	first, second := host(t), host(t)
	log := filepath.Join(t.TempDir(), "log")
	in := mkfifo(t, "in")
	cfg := Config{Stdin: in, Stdout: "file://" + log, Stderr: "file://" + log}
	sio := open(t, first, cfg)
	cmd := start(t, sio, "echo one; read x; echo $x", nil)
	w, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	p := sio.(*process)
	p.ends[1].transfer.stop() // the first agent dies
	p.ends[1].transfer = nil
	again, err := second.Reopen(bounded(t), cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := w.WriteString("two\n"); err != nil {
		t.Fatal(err)
	}
	wait(t, cmd)
	exited(t, again)
	if got := content(t, log); got != "one\ntwo\n" {
		t.Errorf("log is %q", got)
	}
}

func TestLogFileOfATerminal(t *testing.T) {
	h := host(t)
	log := filepath.Join(t.TempDir(), "log")
	sio := open(t, h, Config{Stdout: "file://" + log, Terminal: true})
	cmd, _ := startTerminal(t, sio, "echo one")
	wait(t, cmd)
	exited(t, sio)
	if got := content(t, log); got != "one\n" {
		t.Errorf("log is %q", got)
	}
}

// What descendants write after the exit is logged until Close.
func TestLogFileOfDescendants(t *testing.T) {
	h := host(t)
	log := filepath.Join(t.TempDir(), "log")
	in := mkfifo(t, "in")
	sio := open(t, h, Config{Stdin: in, Stdout: "file://" + log})
	done := mkfifo(t, "done")
	wait(t, start(t, sio, "(read x < "+done+"; echo child) & echo parent", nil))
	exited(t, sio)
	if got := content(t, log); got != "parent\n" {
		t.Errorf("log is %q", got)
	}
	if err := os.WriteFile(done, []byte("\n"), 0); err != nil { // let it go on
		t.Fatal(err)
	}
	for ctx := bounded(t); content(t, log) != "parent\nchild\n"; runtime.Gosched() {
		if ctx.Err() != nil {
			t.Fatalf("log is %q", content(t, log))
		}
	}
}

func TestFullDiskIsTold(t *testing.T) {
	h := host(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Skipf("cannot mount a small file system: %v", err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	sio := open(t, h, Config{Stdout: "file://" + dir + "/log"})
	wait(t, start(t, sio, "head -c 200000 /dev/zero", nil)) // does not hang
	if err := sio.Exited(bounded(t)); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v", err)
	}
	if err := sio.Close(); err != nil {
		t.Error(err)
	}
}

// script writes a logging program that appends to a file.
func script(t *testing.T, body string) (uri, log string) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "logger")
	log = filepath.Join(dir, "log")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nPATH=/bin:/usr/bin\nlog="+log+"\n"+body), 0o755); err != nil {
		t.Fatal(err)
	}
	return "binary://" + path, log
}

const logs = `echo "$CONTAINER_NAMESPACE/$CONTAINER_ID $*" >> $log
printf x >&5; exec 5>&-
cat <&3 >> $log
cat <&4 >> $log
echo end >> $log
`

func TestLoggingProgram(t *testing.T) {
	for _, scheme := range []string{"binary", "binary-v2"} {
		t.Run(scheme, func(t *testing.T) {
			h := host(t)
			uri, log := script(t, logs)
			uri = scheme + strings.TrimPrefix(uri, "binary") + "?b=2&a=%201"
			sio := open(t, h, Config{Namespace: "ns", Container: "c1", Stdout: uri, Stderr: uri})
			wait(t, start(t, sio, "echo one; echo two >&2", nil))
			exited(t, sio)
			if err := sio.Close(); err != nil {
				t.Fatal(err)
			}
			if got := content(t, log); got != "ns/c1 b 2 a  1\none\ntwo\nend\n" {
				t.Errorf("log is %q", got)
			}
		})
	}
}

func TestLoggingProgramForOneOutput(t *testing.T) {
	h := host(t)
	for _, which := range []string{"stdout", "stderr"} {
		uri, log := script(t, logs)
		cfg := Config{Stdout: uri}
		if which == "stderr" {
			cfg = Config{Stderr: uri}
		}
		sio := open(t, h, cfg)
		wait(t, start(t, sio, "echo stdout; echo stderr >&2", nil))
		exited(t, sio)
		if err := sio.Close(); err != nil {
			t.Fatal(err)
		}
		if got := content(t, log); got != "/ \n"+which+"\nend\n" {
			t.Errorf("log is %q", got)
		}
	}
}

func TestLoggingProgramOfATerminal(t *testing.T) {
	h := host(t)
	uri, log := script(t, logs)
	sio := open(t, h, Config{Stdout: uri, Stderr: uri, Terminal: true})
	cmd, _ := startTerminal(t, sio, "echo one")
	wait(t, cmd)
	exited(t, sio)
	if err := sio.Close(); err != nil {
		t.Fatal(err)
	}
	if got := content(t, log); got != "/ \none\nend\n" {
		t.Errorf("log is %q", got)
	}
}

func TestLoggingProgramThatIsNotReady(t *testing.T) {
	h := host(t)
	before := descriptors(t)
	uri, _ := script(t, "exit 1")
	if _, err := h.Open(bounded(t), Config{Stdout: strings.Replace(uri, "binary", "binary-v2", 1)}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("ended: got %v", err)
	}
	uri, _ = script(t, "exec sleep 1000") // and holds descriptor 5
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := h.Open(ctx, Config{Stdout: uri, Stderr: uri}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hangs: got %v", err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, had %d", after, before)
	}
}

func TestLoggingProgramThatDoesNotEnd(t *testing.T) {
	end, term := loggerTime, loggerTerm
	loggerTime, loggerTerm = 20*time.Millisecond, 20*time.Millisecond
	defer func() { loggerTime, loggerTerm = end, term }()
	h := host(t)
	before := descriptors(t)
	uri, _ := script(t, "trap '' TERM; printf x >&5; exec 5>&-; while :; do read x < /dev/zero; done")
	sio, err := h.Open(bounded(t), Config{Stdout: uri, Stderr: uri})
	if err != nil {
		t.Fatal(err)
	}
	wait(t, start(t, sio, "exit 0", nil))
	exited(t, sio)
	if err := sio.Close(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, had %d", after, before)
	}
}

// The process must notice, as it would a closed pipe of any kind.
func TestLoggingProgramThatDies(t *testing.T) {
	h := host(t)
	uri, _ := script(t, "printf x >&5")
	sio := open(t, h, Config{Stdout: uri, Stderr: uri})
	<-sio.(*process).ends[1].logger.exited
	wait(t, start(t, sio, "trap '' PIPE; echo x && exit 1; exit 0", nil))
	exited(t, sio)
}
