package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-kuasar/containerd-kuasar/task/server"
)

func TestConfigNeedsNoWorkingDirectory(t *testing.T) {
	real := t.TempDir()
	if err := os.Mkdir(filepath.Join(real, "rootfs"), 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	c, err := config(server.Ref{ID: "c", Bundle: link}, &specs.Spec{
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: []string{"x"}, Cwd: "/"},
		Mounts: []specs.Mount{
			{Destination: "/a", Source: "a", Options: []string{"rbind"}},
			{Destination: "/b", Source: "/b", Options: []string{"bind"}},
			{Destination: "/proc", Source: "proc", Type: "proc"},
		},
		Annotations: map[string]string{"k": "v"},
		Linux:       &specs.Linux{},
	}, &options.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if c.Rootfs != filepath.Join(real, "rootfs") {
		t.Errorf("rootfs %s", c.Rootfs)
	}
	want := []string{filepath.Join(real, "a"), "/b", "proc"}
	for i, m := range c.Mounts {
		if m.Source != want[i] {
			t.Errorf("source of %s is %s", m.Destination, m.Source)
		}
	}
	if got := strings.Join(c.Labels, " "); got != "k=v bundle="+real {
		t.Errorf("labels %s", got)
	}
}

func TestOptions(t *testing.T) {
	b, err := proto.Marshal(&options.Options{SystemdCgroup: true, IoUid: 7})
	if err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{OptionsURL, "type.googleapis.com/" + OptionsURL} {
		o, err := parse(&anypb.Any{TypeUrl: url, Value: b})
		if err != nil || !o.SystemdCgroup || o.IoUid != 7 {
			t.Errorf("%s: %v, %v", url, o, err)
		}
	}
	if o, err := parse(nil); err != nil || o.SystemdCgroup {
		t.Errorf("none: %v, %v", o, err)
	}
	if _, err := parse(&anypb.Any{TypeUrl: "other"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("others: %v", err)
	}
	if got := string((&options.Options{}).ProtoReflect().Descriptor().FullName()); got != OptionsURL {
		t.Errorf("they are %s", got)
	}
}

func TestClass(t *testing.T) {
	for err, is := range map[error]func(error) bool{
		libcontainer.ErrNotExist:   errdefs.IsNotFound,
		libcontainer.ErrNotRunning: errdefs.IsNotFound,
		libcontainer.ErrExist:      errdefs.IsAlreadyExists,
		libcontainer.ErrPaused:     errdefs.IsFailedPrecondition,
		unix.EMFILE:                errdefs.IsResourceExhausted,
	} {
		if got := class(fmt.Errorf("wrapped: %w", err)); !is(got) || !errors.Is(got, err) {
			t.Errorf("%v became %v", err, got)
		}
	}
	if err := errors.New("x"); class(err) != err {
		t.Error("an unknown one changed")
	}
}

// first is a process that does with an exec FIFO what a first process does. It
// is returned when it has written to its output.
func first(t *testing.T, script string) (ref server.Ref, pid *os.File) {
	t.Helper()
	ref = server.Ref{ID: "c", Dir: t.TempDir()}
	if err := os.Mkdir(state(ref), 0o700); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(state(ref), "exec.fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	// It has the FIFO as a descriptor, and finds it when its name is gone.
	f, err := os.OpenFile(fifo, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := os.StartProcess("/bin/sh", []string{"sh", "-c", script}, &os.ProcAttr{Files: []*os.File{nil, w, os.Stderr, f}})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Kill(); p.Wait() })
	_, _ = r.Read(make([]byte, 1))
	fd, err := unix.PidfdOpen(p.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	pid = os.NewFile(uintptr(fd), "pidfd")
	t.Cleanup(func() { pid.Close() })
	return ref, pid
}

// nobody holds anything.
type nobody struct{}

func (nobody) Hold(string, *os.File) error { return errdefs.ErrUnavailable }
func (nobody) Drop(string)                 {}

func TestStart(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		is     func(error) bool
	}{
		"goes on":         {`echo; printf 0 > /proc/self/fd/3; exec sleep 1000`, nil},
		"goes on and out": {`echo; printf 0 > /proc/self/fd/3`, nil},
		"went on before":  {`exec 3>&-; echo; exec sleep 1000`, nil},
		"dies":            {`echo; exit 1`, errdefs.IsFailedPrecondition},
		"dies on its way": {`echo; : > /proc/self/fd/3`, errdefs.IsFailedPrecondition},
		"hangs":           {`echo; exec sleep 1000`, func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }},
	} {
		t.Run(name, func(t *testing.T) {
			ref, pid := first(t, c.script)
			patience := 10 * time.Second
			if name == "hangs" {
				patience = 200 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			err := New(nobody{}).Start(ctx, ref, pid)
			if c.is == nil && err != nil || c.is != nil && (err == nil || !c.is(err)) {
				t.Errorf("got %v", err)
			}
			if c.is != nil {
				return
			}
			if _, err := os.Stat(filepath.Join(state(ref), "exec.fifo")); !os.IsNotExist(err) {
				t.Errorf("the FIFO is there: %v", err)
			}
			if err := New(nobody{}).Start(ctx, ref, pid); err != nil {
				t.Errorf("once more: %v", err)
			}
		})
	}
}

func TestDeleteOfNothing(t *testing.T) {
	ref := server.Ref{ID: "c", Dir: t.TempDir(), Bundle: "/nonexistent"}
	if err := New(nobody{}).Delete(context.Background(), ref); err != nil {
		t.Error(err)
	}
	for name, call := range map[string]func() error{
		"pause":  func() error { return New(nobody{}).Pause(context.Background(), ref) },
		"update": func() error { return New(nobody{}).Update(context.Background(), ref, &specs.LinuxResources{}) },
		"kill":   func() error { return New(nobody{}).Signal(context.Background(), ref, unix.SIGKILL) },
		"signal": func() error { return New(nobody{}).Signal(context.Background(), ref, unix.SIGTERM) },
		"pids":   func() error { _, err := New(nobody{}).Pids(context.Background(), ref); return err },
		"cgroup": func() error { _, err := New(nobody{}).Cgroups(context.Background(), ref); return err },
		"exec": func() error {
			_, err := New(nobody{}).Exec(context.Background(), ref, server.Process{Exec: &specs.Process{}})
			return err
		},
	} {
		if err := call(); !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
