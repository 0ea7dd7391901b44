package stdio

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

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
