package stdio

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

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
