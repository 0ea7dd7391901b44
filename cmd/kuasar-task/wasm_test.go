package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/engine"
)

// probe is the module test/modules/probe, built once.
var probe = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "probe-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "probe.wasm")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "../../test/modules/probe")
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build probe: %w\n%s", err, out)
	}
	return os.ReadFile(path)
})

// modules is the cache of all tests: they compile the probe once.
var modules = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "modules-") })

// newModule makes the bundle of a container that runs the probe with wazero.
func (n *node) newModule(args ...string) *box {
	n.Helper()
	b := n.newBox(append([]string{"/probe.wasm"}, args...)...)
	module := must[[]byte](n)(probe())
	if err := os.WriteFile(filepath.Join(b.bundle, "rootfs/probe.wasm"), module, 0o644); err != nil {
		n.Fatal(err)
	}
	b.give(must[string](n)(modules()))
	// The backend gives a pod's network namespace.
	b.spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	return b
}

// give gives the container a cache of modules.
func (b *box) give(cache string) {
	b.Helper()
	b.req.Options = must[*anypb.Any](b.node)(engine.Options{Engine: engine.Wazero, Cache: cache}.Any())
}

// proc reads a file of the container's process.
func (b *box) proc(name string) string {
	b.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", b.state("").Pid, name))
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func TestModule(t *testing.T) {
	n := newNode(t)
	b := n.newModule("args", "a", "b c").run()
	if code := b.wait(""); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if got := b.out.String(); got != "a\nb c\n" {
		t.Errorf("output %q", got)
	}
	b.delete("")
	if left := b.leftovers(); left != "" {
		t.Errorf("left: %s", left)
	}
}

// TestModuleProcess looks at the process from outside.
func TestModuleProcess(t *testing.T) {
	n := newNode(t)
	b := n.newModule("sleep")
	adj := 321
	b.spec.Process.OOMScoreAdj = &adj
	b.spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 123, Hard: 456}}
	b.run()
	if got := b.proc("oom_score_adj"); got != "321" {
		t.Errorf("oom_score_adj %s", got)
	}
	status := "\n" + b.proc("status")
	for _, want := range []string{"\nUmask:\t0022\n", "\nNoNewPrivs:\t1\n", "\nSeccomp:\t2\n"} {
		if !strings.Contains(status, want) {
			t.Errorf("status has no %q:\n%s", want, status)
		}
	}
}

// TestModuleSignals holds that a module ends as a program without handlers
// does, and that the engine tells nothing of itself.
func TestModuleSignals(t *testing.T) {
	n := newNode(t)
	for _, sig := range []unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGALRM} {
		for command, said := range map[string]string{"sleep": "sleeping\n", "loop": "looping\n"} {
			t.Run(sig.String()+" "+command, func(t *testing.T) {
				b := n.newModule(command)
				b.TB = t
				stderr := b.read(filepath.Join(b.bundle, "stderr"))
				b.req.Stderr = stderr.path
				b.run()
				b.out.await(t, said)
				b.kill(uint32(sig))
				if code := b.wait(""); code != 128+uint32(sig) {
					t.Errorf("exit code %d", code)
				}
				b.delete("")
				if got := stderr.String(); got != "" {
					t.Errorf("stderr %q", got)
				}
			})
		}
	}
}

// TestModuleMessage holds that a volume below /dev is one.
func TestModuleMessage(t *testing.T) {
	n := newNode(t)
	b := n.newModule("write", "/dev/termination-log", "why")
	message := filepath.Join(b.bundle, "message")
	if err := os.WriteFile(message, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	b.spec.Mounts = append(b.spec.Mounts, specs.Mount{Destination: "/dev/termination-log", Source: message, Type: "bind", Options: []string{"rbind", "rprivate", "rw"}})
	if code := b.run().wait(""); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if got, err := os.ReadFile(message); err != nil || string(got) != "why" {
		t.Errorf("message %q, %v", got, err)
	}
}

func TestModuleTerminal(t *testing.T) {
	n := newNode(t)
	b := n.newModule("talk", "4")
	path, w := b.stdin("stdin")
	b.req.Stdin, b.req.Terminal, b.spec.Process.Terminal = path, true, true
	b.run()
	b.resize("", 100, 40)
	if _, err := w.WriteString("line\n"); err != nil {
		t.Fatal(err)
	}
	if got := b.wait(""); got != 4 {
		t.Errorf("exit status %d", got)
	}
	if got := b.out.String(); !strings.Contains(got, "one\r\n") || !strings.Contains(got, "two\r\n") {
		t.Errorf("output %q", got)
	}
}

// TestModuleInterrupted has a terminal's user end a module.
func TestModuleInterrupted(t *testing.T) {
	n := newNode(t)
	b := n.newModule("sleep")
	path, w := b.stdin("stdin")
	b.req.Stdin, b.req.Terminal, b.spec.Process.Terminal = path, true, true
	b.run()
	b.out.await(t, "sleeping\r\n")
	if _, err := w.WriteString("\x03"); err != nil {
		t.Fatal(err)
	}
	if got := b.wait(""); got != 128+uint32(unix.SIGINT) {
		t.Errorf("exit status %d", got)
	}
}

func TestModuleExecs(t *testing.T) {
	n := newNode(t)
	b := n.newModule("sleep").run()
	out := b.exec("e", nil, "/probe.wasm", "args", "inside")
	b.startExec("e")
	if got := b.wait("e"); got != 0 || out.String() != "inside\n" {
		t.Errorf("exit status %d, output %q", got, out.String())
	}
	b.exec("loop", nil, "/probe.wasm", "loop")
	b.startExec("loop")
	b.kill(uint32(unix.SIGKILL))
	if got := b.wait(""); got != 137 {
		t.Errorf("exit status %d", got)
	}
	if got := b.wait("loop"); got != 137 {
		t.Errorf("the other module's exit status %d", got)
	}
}
