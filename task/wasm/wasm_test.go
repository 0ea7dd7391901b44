package wasm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/task/server"
	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/engine"
)

// build is the static kuasar-task, built once: the test's own binary needs
// libraries, which a cell has not.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "wasm-test-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "kuasar-task")
	cmd := exec.Command("go", "build", "-tags", "seccomp netgo osusergo", "-ldflags", `-s -w -extldflags "-static"`, "-o", path, "../../cmd/kuasar-task")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build kuasar-task: %w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := build(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// hello is a module that writes "hello" and exits with status 3.
var hello = []byte("\x00asm\x01\x00\x00\x00" +
	"\x01\x10\x03\x60\x04\x7f\x7f\x7f\x7f\x01\x7f\x60\x01\x7f\x00\x60\x00\x00" +
	"\x02\x46\x02" +
	"\x16wasi_snapshot_preview1\x08fd_write\x00\x00" +
	"\x16wasi_snapshot_preview1\x09proc_exit\x00\x01" +
	"\x03\x02\x01\x02" +
	"\x05\x03\x01\x00\x01" +
	"\x07\x13\x02\x06memory\x02\x00\x06_start\x00\x02" +
	"\x0a\x13\x01\x11\x00\x41\x01\x41\x00\x41\x01\x41\x14\x10\x00\x1a\x41\x03\x10\x01\x0b" +
	"\x0b\x14\x01\x00\x41\x00\x0b\x0e\x08\x00\x00\x00\x06\x00\x00\x00hello\n")

// rig is a Runtime with one container's files.
type rig struct {
	testing.TB
	*Runtime
	ref  server.Ref
	spec *specs.Spec
}

func newRig(t testing.TB) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes namespaces and cgroups")
	}
	dir := t.TempDir()
	r := &rig{TB: t, Runtime: New(Config{Begin: func() func() { return func() {} }, Dir: filepath.Join(dir, "w"), Version: "test"})}
	r.self = build
	rootfs := filepath.Join(dir, "rootfs")
	r.must(os.MkdirAll(rootfs, 0o755))
	r.must(os.WriteFile(filepath.Join(rootfs, "hello.wasm"), hello, 0o644))
	id := fmt.Sprintf("kuasar-wasm-test-%d-%d", os.Getpid(), time.Now().UnixNano())
	r.spec = &specs.Spec{
		Root:    &specs.Root{Path: rootfs},
		Process: &specs.Process{Args: []string{"/hello.wasm"}, Cwd: "/"},
		Linux:   &specs.Linux{CgroupsPath: "/" + id},
	}
	options, err := engine.Options{Engine: engine.Wazero, Cache: filepath.Join(dir, "cache")}.Any()
	r.must(err)
	r.ref = server.Ref{Namespace: "test", ID: id, Dir: filepath.Join(dir, "c"), Bundle: dir, Options: options}
	r.must(os.Mkdir(r.ref.Dir, 0o700))
	t.Cleanup(func() { r.must(r.Delete(context.Background(), r.ref)) })
	return r
}

func (r *rig) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

// save writes the spec into the bundle.
func (r *rig) save() {
	r.Helper()
	raw, err := json.Marshal(r.spec)
	r.must(err)
	r.must(os.WriteFile(filepath.Join(r.ref.Bundle, "config.json"), raw, 0o600))
}

// create makes the container; its output is that of both streams.
func (r *rig) create() (s server.Started, output *os.File, err error) {
	r.Helper()
	r.save()
	return r.launch(func(p server.Process) (server.Started, error) {
		p.Spec = r.spec
		return r.Create(r.Context(), r.ref, p)
	})
}

func (r *rig) launch(do func(server.Process) (server.Started, error)) (s server.Started, output *os.File, err error) {
	r.Helper()
	null, err := os.Open(os.DevNull)
	r.must(err)
	defer null.Close()
	in, out, err := os.Pipe()
	r.must(err)
	defer out.Close()
	r.Cleanup(func() { in.Close() })
	s, err = do(server.Process{Stdin: null, Stdout: out, Stderr: out})
	if err != nil {
		out.Close()
		said, _ := io.ReadAll(in)
		r.Logf("it said %q", said)
	}
	return s, in, err
}

// wait returns how a process ended, and all that it wrote.
func (r *rig) wait(s server.Started, output *os.File) (unix.WaitStatus, string) {
	r.Helper()
	var ws unix.WaitStatus
	_, err := unix.Wait4(s.Pid, &ws, 0, nil)
	r.must(err)
	said, err := io.ReadAll(output)
	r.must(err)
	return ws, string(said)
}

func (r *rig) start(s server.Started) error {
	r.Helper()
	f, err := pidfd.Open(s.Pid, 0)
	r.must(err)
	defer f.Close()
	return r.Start(r.Context(), r.ref, f)
}

func TestLife(t *testing.T) {
	r := newRig(t)
	s, output, err := r.create()
	r.must(err)
	pids, err := r.Pids(t.Context(), r.ref)
	if err != nil || len(pids) != 1 || pids[0] != s.Pid {
		t.Errorf("processes %v, %v, want %d", pids, err, s.Pid)
	}
	r.must(r.start(s))
	r.must(r.start(s)) // another worker may not know
	if ws, said := r.wait(s, output); ws.ExitStatus() != 3 || said != "hello\n" {
		t.Errorf("status %d, output %q", ws.ExitStatus(), said)
	}
	r.must(r.Delete(t.Context(), r.ref))
	r.must(r.Delete(t.Context(), r.ref))
	paths, err := r.Cgroups(t.Context(), r.ref)
	r.must(err)
	for _, path := range paths {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("cgroup %s is left: %v", path, err)
		}
	}
}

func TestKillBeforeStart(t *testing.T) {
	r := newRig(t)
	s, output, err := r.create()
	r.must(err)
	r.must(r.Signal(t.Context(), r.ref, unix.SIGKILL))
	if ws, said := r.wait(s, output); ws.Signal() != unix.SIGKILL || said != "" {
		t.Errorf("status %v, output %q", ws, said)
	}
}

func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(r *rig)
		want   string
		class  func(error) bool
	}{
		"no file":  {func(r *rig) { r.spec.Process.Args[0] = "/none.wasm" }, "/none.wasm", errdefs.IsNotFound},
		"no args":  {func(r *rig) { r.spec.Process.Args = nil }, "process.args", errdefs.IsInvalidArgument},
		"a text":   {func(r *rig) { r.file("hello.wasm", "text") }, "no WebAssembly module", errdefs.IsInvalidArgument},
		"an ELF":   {func(r *rig) { r.file("hello.wasm", "\x7fELF....") }, "program for Linux", errdefs.IsInvalidArgument},
		"a limit":  {func(r *rig) { r.spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} }, "RLIMIT_X", errdefs.IsInvalidArgument},
		"a mount":  {func(r *rig) { r.spec.Mounts = []specs.Mount{{Type: "nfs", Destination: "/n", Source: "s"}} }, `"nfs"`, errdefs.IsInvalidArgument},
		"a volume": {func(r *rig) { r.volume("/no/such/source", "/v") }, "/no/such/source", nil},
		"a netns": {func(r *rig) {
			r.spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/no/netns"}}
		}, "/no/netns", nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			c.change(r)
			_, _, err := r.create()
			if err == nil || !strings.Contains(err.Error(), c.want) || c.class != nil && !c.class(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func (r *rig) file(name, content string) {
	r.Helper()
	r.must(os.WriteFile(filepath.Join(r.spec.Root.Path, name), []byte(content), 0o644))
}

func (r *rig) volume(source, target string, options ...string) {
	r.spec.Mounts = append(r.spec.Mounts, specs.Mount{Type: "bind", Source: source, Destination: target, Options: options})
}
