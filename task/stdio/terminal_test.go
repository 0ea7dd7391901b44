package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// pty makes a terminal that passes bytes as they are.
func pty(t testing.TB) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	mode, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	mode.Oflag &^= unix.OPOST
	mode.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(int(slave.Fd()), unix.TCSETS, mode); err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// startTerminal runs a script on a terminal of sio. It returns a duplicate of
// the master, as package hold would have it.
func startTerminal(t testing.TB, sio IO, script string) (*exec.Cmd, *os.File) {
	t.Helper()
	master, slave := pty(t)
	fd, err := unix.FcntlInt(master.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	held := os.NewFile(uintptr(fd), "held master")
	t.Cleanup(func() { held.Close() })
	if a, b, c := sio.Files(); a != nil || b != nil || c != nil {
		t.Error("files beside a terminal")
	}
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	sio.Started()
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if err := sio.Attach(master); err != nil {
		t.Fatal(err)
	}
	return cmd, held
}

func TestTerminal(t *testing.T) {
	h := host(t)
	in, out := mkfifo(t, "in"), mkfifo(t, "out")
	all := read2end(t, out)
	sio := open(t, h, Config{Stdin: in, Stdout: out, Terminal: true})
	cmd, _ := startTerminal(t, sio, "read x; echo got $x; stty size; echo err >&2")
	if err := sio.Resize(132, 43); err != nil {
		t.Fatal(err)
	}
	w, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	wait(t, cmd)
	exited(t, sio)
	expect(t, all, "got hello\n43 132\nerr\n")
	if err := sio.Resize(80, 24); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("resize after the exit: got %v", err)
	}
}

func TestTerminalDrainsAfterTheExit(t *testing.T) {
	h := host(t)
	out := mkfifo(t, "out")
	client := attach(t, out)
	sio := open(t, h, Config{Stdout: out, Terminal: true})
	const size = 300 << 10
	cmd, _ := startTerminal(t, sio, "yes 123456789 | head -c "+strconv.Itoa(size))
	all := make(chan []byte, 1)
	go func() {
		b, err := io.ReadAll(client)
		if err != nil {
			t.Error(err)
		}
		all <- b
	}()
	wait(t, cmd)
	exited(t, sio)
	expect(t, all, strings.Repeat("123456789\n", size/10))
}

// Small enough for FIFO and terminal: all of it is in the FIFO when Exited
// returns, and stays there for a reader that comes later.
func TestTerminalOutputIsKept(t *testing.T) {
	h := host(t)
	out := mkfifo(t, "out")
	client := attach(t, out)
	sio := open(t, h, Config{Stdout: out, Terminal: true})
	client.Close()
	cmd, held := startTerminal(t, sio, "echo unread")
	wait(t, cmd)
	exited(t, sio)
	held.Close()
	expect(t, read2end(t, out), "unread\n")
}

// Nobody reads: the process waits, as it would for a terminal that is stopped,
// and goes on with the next reader.
func TestTerminalWithoutAReaderLosesNothing(t *testing.T) {
	h := host(t)
	in, out := mkfifo(t, "in"), mkfifo(t, "out")
	client := attach(t, out)
	sio := open(t, h, Config{Stdin: in, Stdout: out, Terminal: true})
	client.Close()
	const size = 300 << 10
	cmd, _ := startTerminal(t, sio, "yes 123456789 | head -c "+strconv.Itoa(size))
	all := read2end(t, out)
	wait(t, cmd)
	exited(t, sio)
	expect(t, all, strings.Repeat("123456789\n", size/10))
}

func TestTerminalExitedEndsWithItsContext(t *testing.T) {
	h := host(t)
	out := mkfifo(t, "out")
	client := attach(t, out)
	sio := open(t, h, Config{Stdout: out, Terminal: true})
	client.Close()
	full := strings.Repeat("-", 64<<10) // what a FIFO holds
	w, err := os.OpenFile(out, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString(full); err != nil {
		t.Fatal(err)
	}
	w.Close()
	cmd, held := startTerminal(t, sio, "echo late")
	held.Close()
	wait(t, cmd)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := sio.Exited(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	expect(t, read2end(t, out), full+"late\n") // and its end
}

// A descendant has the terminal open and lives on: what was written is read,
// and the client sees an end, even if more is written.
func TestTerminalOfDescendants(t *testing.T) {
	for name, script := range map[string]string{
		"silent": "trap '' HUP; (read x <&3) & echo parent",
		"noisy":  "trap '' HUP; yes noise & echo parent",
	} {
		t.Run(name, func(t *testing.T) {
			h := host(t)
			out := mkfifo(t, "out")
			all := read2end(t, out)
			sio := open(t, h, Config{Stdout: out, Terminal: true})
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			defer w.Close()
			master, slave := pty(t)
			cmd := exec.Command("/bin/sh", "-c", script)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
			cmd.ExtraFiles = []*os.File{r}
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }()
			slave.Close()
			if err := sio.Attach(master); err != nil {
				t.Fatal(err)
			}
			wait(t, cmd)
			exited(t, sio)
			select {
			case b := <-all:
				if !strings.Contains(string(b), "parent\n") || len(b) > 2*inFlight {
					t.Errorf("read %d bytes %.80q", len(b), b)
				}
			case <-bounded(t).Done():
				t.Fatal("reader sees no end")
			}
		})
	}
}

// A process may close its terminal and open it again, as systemd does.
func TestTerminalOpenedAgain(t *testing.T) {
	h := host(t)
	out := mkfifo(t, "out")
	client := attach(t, out)
	sio := open(t, h, Config{Stdout: out, Terminal: true})
	master, slave := pty(t)
	name := slave.Name()
	if err := sio.Attach(master); err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"one", "two", "thr"} {
		if _, err := slave.WriteString(word); err != nil {
			t.Fatal(err)
		}
		slave.Close()
		b := make([]byte, 3)
		if _, err := io.ReadFull(client, b); err != nil || string(b) != word {
			t.Fatalf("%q, %v", b, err)
		}
		var err error
		if slave, err = os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
			t.Fatal(err)
		}
	}
	slave.Close()
	exited(t, sio)
}

func TestTerminalReopened(t *testing.T) {
	first, second := host(t), host(t)
	in, out := mkfifo(t, "in"), mkfifo(t, "out")
	all := read2end(t, out)
	cfg := Config{Stdin: in, Stdout: out, Terminal: true}
	sio := open(t, first, cfg)
	cmd, held := startTerminal(t, sio, "echo one; read x; stty size; echo got $x")
	w, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	again, err := second.Reopen(bounded(t), cfg, held)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := sio.Close(); err != nil { // the first agent dies
		t.Fatal(err)
	}
	if err := again.Resize(90, 30); err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	wait(t, cmd)
	exited(t, again)
	expect(t, all, "one\n30 90\ngot hello\n")
}

func TestTerminalWithoutStdio(t *testing.T) {
	h := host(t)
	sio := open(t, h, Config{Terminal: true})
	cmd, _ := startTerminal(t, sio, "yes 123456789 | head -c 300000")
	wait(t, cmd) // its output goes nowhere, but goes
	exited(t, sio)
}

func TestTerminalInputWaitsForTheProcess(t *testing.T) {
	h := host(t)
	in, out := mkfifo(t, "in"), mkfifo(t, "out")
	all := read2end(t, out)
	sio := open(t, h, Config{Stdin: in, Stdout: out, Terminal: true})
	const size = 200 << 10
	cmd, _ := startTerminal(t, sio, "echo ready; head -c "+strconv.Itoa(size)+" | md5sum")
	w, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var all2 strings.Builder
	for i := 0; all2.Len() < size; i++ {
		fmt.Fprintf(&all2, "line %d\n", i)
	}
	text := all2.String()[:size]
	// The terminal is in raw mode from here on: it drops nothing.
	master := sio.(*process).master
	raw(t, master)
	if _, err := w.WriteString(text); err != nil {
		t.Fatal(err)
	}
	wait(t, cmd)
	exited(t, sio)
	sum := exec.Command("md5sum")
	sum.Stdin = strings.NewReader(text)
	want, err := sum.Output()
	if err != nil {
		t.Fatal(err)
	}
	expect(t, all, "ready\n"+string(want))
}

func raw(t *testing.T, fd int) {
	t.Helper()
	mode, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	mode.Iflag, mode.Oflag, mode.Lflag = 0, 0, 0
	mode.Cc[unix.VMIN], mode.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, mode); err != nil {
		t.Fatal(err)
	}
}

func TestManyTerminalsShareOneGoroutine(t *testing.T) {
	h := host(t)
	before := runtime.NumGoroutine()
	const n = 20
	for range n {
		out := mkfifo(t, "out")
		client := attach(t, out)
		sio := open(t, h, Config{Stdout: out, Terminal: true})
		master, slave := pty(t)
		if err := sio.Attach(master); err != nil {
			t.Fatal(err)
		}
		if _, err := slave.WriteString("x"); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1)
		if _, err := io.ReadFull(client, b); err != nil {
			t.Fatal(err)
		}
		slave.Close()
	}
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("%d goroutines for %d terminals", after-before, n)
	}
}

func TestAttachTwiceOrToNothing(t *testing.T) {
	h := host(t)
	before := descriptors(t)
	plain := open(t, h, Config{})
	master, slave := pty(t)
	if err := plain.Attach(master); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("without a terminal: got %v", err)
	}
	slave.Close()
	sio := open(t, h, Config{Terminal: true})
	for i := range 2 {
		master, slave := pty(t)
		if err := sio.Attach(master); (err == nil) != (i == 0) {
			t.Errorf("attach %d: got %v", i, err)
		}
		slave.Close()
	}
	if err := errors.Join(sio.Close(), plain.Close()); err != nil {
		t.Fatal(err)
	}
	master, slave = pty(t)
	if err := sio.Attach(master); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("after Close: got %v", err)
	}
	slave.Close()
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, had %d", after, before)
	}
}
