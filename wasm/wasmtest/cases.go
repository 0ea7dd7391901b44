package wasmtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func outputs(t *testing.T, n Node) {
	prints(t, n, Container{Args: []string{"/hello.wasm"}}, "hello\n")
	prints(t, n, probe("args", "one", "two words", "", "--flag", "-e", "ä"), "one\ntwo words\n\n--flag\n-e\nä\n")
	prints(t, n, probe("cwd"), "/\n")
	in := probe("cwd")
	in.Dir = "/data"
	prints(t, n, in, "/data\n")

	env := probe("env")
	env.Env = []string{"A=1", "B=with = and spaces", "EMPTY="}
	r := run(t, n, env)
	for _, want := range env.Env {
		if !strings.Contains("\n"+r.Stdout, "\n"+want+"\n") {
			t.Errorf("environment: no %q in %s", want, r)
		}
	}
	if strings.Contains(r.Stdout, "KUASAR") || strings.Contains(r.Stdout, "GODEBUG") {
		t.Errorf("environment: what is not the container's is in %s", r)
	}
	if r := run(t, n, probe("stderr", "to stderr")); r != (Result{Stderr: "to stderr\n"}) {
		t.Errorf("stderr: %s", r)
	}
	for _, code := range []uint32{0, 1, 7, 255} {
		if r := run(t, n, probe("exit", decimal(code))); r != (Result{Code: code}) {
			t.Errorf("exit %d: %s", code, r)
		}
	}
	var lines strings.Builder
	for i := range 50000 {
		fmt.Fprintf(&lines, "line %d\n", i)
	}
	prints(t, n, probe("repeat", "50000"), lines.String())
}

func files(t *testing.T, n Node) {
	prints(t, n, probe("cat", "/data/file"), "in the image\n")
	relative := probe("cat", "file")
	relative.Dir = "/data"
	prints(t, n, relative, "in the image\n")
	if r := run(t, n, probe("cat", "/no/such/file")); r.Code != 1 || !strings.Contains(r.Stderr, "/no/such/file") {
		t.Errorf("a missing file: %s", r)
	}
	if r := run(t, n, probe("write", "/tmp/new", "content")); r.Code != 0 {
		t.Errorf("a new file: %s", r)
	}
	if r := run(t, n, probe("cat", "/tmp/new")); r.Code != 1 {
		t.Errorf("a file of another container: %s", r)
	}
	// Of the node's files the image has none.
	for _, path := range []string{"/etc/passwd", "/../../../../../../../../etc/passwd", "/proc/self/environ", "/proc/1/root/etc/passwd"} {
		if r := run(t, n, probe("cat", path)); r.Code != 1 || r.Stdout != "" {
			t.Errorf("%s, which is not the container's: %s", path, r)
		}
	}
	frozen := probe("write", "/tmp/new", "content")
	frozen.Frozen = true
	if r := run(t, n, frozen); r.Code != 1 {
		t.Errorf("a new file on a read-only root: %s", r)
	}
}

func mounts(t *testing.T, n Node) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("of the node"), 0o644); err != nil {
		t.Fatal(err)
	}
	with := func(readOnly bool, args ...string) Container {
		c := probe(args...)
		c.Mounts = []Mount{{Source: dir, Target: "/mnt/volume", ReadOnly: readOnly}}
		return c
	}
	prints(t, n, with(false, "cat", "/mnt/volume/file"), "of the node")
	// WasmEdge opens the files of Go's programs for writing, too, but not those
	// of C's.
	read := with(true, "/mnt/volume/file")
	read.Args[0] = "/cat.wasm"
	prints(t, n, read, "of the node")
	if r := run(t, n, with(true, "write", "/mnt/volume/new", "no")); r.Code != 1 {
		t.Errorf("a new file on a read-only volume: %s", r)
	}
	if r := run(t, n, with(false, "write", "/mnt/volume/new", "yes")); r.Code != 0 {
		t.Errorf("a new file on a volume: %s", r)
	}
	if raw, err := os.ReadFile(filepath.Join(dir, "new")); err != nil || string(raw) != "yes" {
		t.Errorf("the file on the node: %q, %v", raw, err)
	}
	if err := os.Symlink("/etc/hostname", filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	host, err := os.ReadFile("/etc/hostname")
	if err != nil {
		t.Fatal(err)
	}
	if r := run(t, n, with(false, "cat", "/mnt/volume/out")); len(host) > 0 && strings.Contains(r.Stdout, string(host)) {
		t.Errorf("through a link out of the volume: %s", r)
	}
}

// user holds that a module has the rights of the container's user.
func user(t *testing.T, n Node) {
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "secret"), []byte("secret"), 0o600), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	c := probe("cat", "/mnt/secret")
	c.Mounts = []Mount{{Source: dir, Target: "/mnt"}}
	prints(t, n, c, "secret")
	c.User = 1000
	if r := run(t, n, c); r.Code != 1 || r.Stdout != "" {
		t.Errorf("a file of root's, as another user: %s", r)
	}
}

func clock(t *testing.T, n Node) {
	before := time.Now().Unix()
	r := run(t, n, probe("clock"))
	got, err := strconv.ParseInt(strings.TrimSpace(r.Stdout), 10, 64)
	if err != nil || got < before || got > time.Now().Unix() {
		t.Errorf("the clock, which is at %d: %s", before, r)
	}
}

func random(t *testing.T, n Node) {
	seen := map[string]bool{}
	for range 3 {
		r := run(t, n, probe("random"))
		if len(r.Stdout) != 33 || seen[r.Stdout] {
			t.Errorf("random bytes: %s after %v", r, seen)
		}
		seen[r.Stdout] = true
	}
}

func stdin(t *testing.T, n Node) {
	c := probe("cat")
	c.Stdin = strings.Repeat("from stdin\n", 10000)
	prints(t, n, c, c.Stdin)
	c = probe("upper")
	c.Stdin = "one\ntwo\n"
	prints(t, n, c, "ONE\nTWO\n")
	prints(t, n, probe("cat"), "")
}

// signals ends modules that do not end by themselves.
func signals(t *testing.T, n Node) {
	for command, said := range map[string]string{"loop": "looping", "sleep": "sleeping"} {
		for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
			t.Run(command+" "+unix.SignalName(sig), func(t *testing.T) {
				task, err := n.Start(t, probe(command))
				if err != nil {
					t.Fatal(err)
				}
				task.Await(t, said)
				within(t, 10*time.Second, "its end", func() {
					task.Kill(t, sig)
					if r := task.Wait(t); r.Code != 128+uint32(sig) {
						t.Error(r)
					}
				})
			})
		}
	}
}

// memory holds that the container's limit is the module's, which is told so.
func memory(t *testing.T, n Node) {
	c := Container{Args: []string{"/memory.wasm"}, Memory: 256 << 20}
	if r := run(t, n, c); r.Code != 0 || !strings.HasSuffix(r.Stdout, "refused\n") { // WasmEdge says so, too
		t.Errorf("memory without end: %s", r)
	}
	c = probe("alloc", "300")
	c.Memory = 256 << 20
	if r := run(t, n, c); r.Code == 0 {
		t.Errorf("300 MiB of 256: %s", r)
	}
	c.Args[2] = "50"
	prints(t, n, c, "50 MiB\n")
}

func traps(t *testing.T, n Node) {
	for _, command := range []string{"trap", "abort", "outside"} {
		if r := run(t, n, Container{Args: []string{"/fault.wasm", command}}); r.Code != trapped || r.Stdout+r.Stderr == "" { // WasmEdge says it on stdout
			t.Errorf("%s: %s, want exit code %d and a reason", command, r, trapped)
		}
	}
	if r := run(t, n, probe("panic")); r.Code != 2 || !strings.Contains(r.Stderr, "as asked") {
		t.Errorf("a panic: %s", r)
	}
	// Where the stack is full an engine may take it for a trap or die of it.
	c := Container{Args: []string{"/stack.wasm"}, Memory: 256 << 20}
	if r := run(t, n, c); r.Code != trapped && r.Code != 128+uint32(unix.SIGSEGV) && r.Code != 128+uint32(unix.SIGKILL) {
		t.Errorf("a full stack: %s", r)
	}
}

// refused starts what cannot run: the reason is the user's to see.
func refused(t *testing.T, n Node) {
	for path, want := range map[string]string{
		"/text.wasm":    "no WebAssembly module",
		"/short.wasm":   "cut short",
		"/import.wasm":  "env.missing",
		"/library.wasm": "_start",
		"/no/such.wasm": "/no/such.wasm",
		"/data":         "no WebAssembly module",
		"/program":      "for Linux",
	} {
		task, err := n.Start(t, Container{Args: []string{path}})
		if err == nil {
			t.Errorf("%s runs: %s", path, task.Wait(t))
			continue
		}
		if text := err.Error(); !strings.Contains(text, want) || len(text) > 1000 {
			t.Errorf("%s: %q, want %q and no more than 1000 bytes", path, text, want)
		}
	}
}

// many runs containers of one module side by side.
func many(t *testing.T, n Node) {
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() {
			text := strconv.Itoa(i)
			task, err := n.Start(t, probe("args", text))
			if err != nil {
				t.Error(err)
				return
			}
			if r := task.Wait(t); r.Stdout != text+"\n" || r.Code != 0 {
				t.Errorf("container %d: %s", i, r)
			}
		})
	}
	all.Wait()
}

func decimal(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// quote shows a text's beginning.
func quote(s string) string { return fmt.Sprintf("%.300q", s) }
