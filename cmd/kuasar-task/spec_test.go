package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestHooks(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sh", "-c", "exit 0")
	trace := filepath.Join(b.bundle, "trace")
	hook := func(name string) []specs.Hook {
		return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "cat > /dev/null; echo " + name + " >> " + trace}}}
	}
	// Those two run in the container's mount namespace.
	b.spec.Mounts = append(b.spec.Mounts, specs.Mount{Destination: trace, Source: "trace", Options: []string{"bind"}})
	if err := os.WriteFile(trace, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	b.spec.Hooks = &specs.Hooks{
		CreateRuntime:   hook("createRuntime"),
		CreateContainer: hook("createContainer"),
		StartContainer:  hook("startContainer"),
		Poststart:       hook("poststart"),
		Poststop:        hook("poststop"),
	}
	b.run()
	if got := b.wait(""); got != 0 {
		t.Errorf("exit status %d", got)
	}
	b.delete("")
	got, err := os.ReadFile(trace)
	// libcontainer runs poststart when the container is created.
	const want = "createRuntime createContainer poststart startContainer poststop"
	if err != nil || strings.Join(strings.Fields(string(got)), " ") != want {
		t.Errorf("%q, %v", got, err)
	}
}

func TestFailedHookLeavesNothing(t *testing.T) {
	n := newNode(t)
	b := n.newBox("true")
	b.spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo broken >&2; exit 1"}}}}
	if _, err := b.tryCreate(); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("got %v", err)
	}
	if left := b.leftovers(); left != "" {
		t.Errorf("left: %s", left)
	}
}

func TestUserNamespace(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sh", "-c", "id -u; cat /proc/self/uid_map; echo again > /proc/self/fd/1")
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	b.spec.Linux.UIDMappings, b.spec.Linux.GIDMappings = ids, ids
	b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	for dir := b.bundle; len(dir) >= len(n.dir); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	if err := filepath.WalkDir(filepath.Join(b.bundle, "rootfs"), func(path string, _ os.DirEntry, _ error) error {
		return os.Lchown(path, 100000, 100000)
	}); err != nil {
		t.Fatal(err)
	}
	b.run()
	got := strings.Fields(b.out.String())
	if strings.Join(got, " ") != "0 0 100000 65536 again" {
		t.Errorf("output %q", got)
	}
}

func TestIOOwner(t *testing.T) {
	n := newNode(t)
	b := n.newBox("true")
	b.req.Options = anyOf(b, &options.Options{IoUid: 1234, IoGid: 4321})
	b.create()
	info, err := os.Stat(b.out.path)
	if err != nil {
		t.Fatal(err)
	}
	if uid, gid := owner(info); uid != 1234 && uid != 0 || gid != 4321 {
		t.Errorf("stdout belongs to %d:%d", uid, gid)
	}
	b.start()
}

func TestSeccomp(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sh", "-c", "mkdir /tmp/x || echo refused")
	one := uint(1)
	b.spec.Linux.Seccomp = &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls:      []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno, ErrnoRet: &one}},
	}
	b.run()
	if got := b.out.String(); !strings.Contains(got, "refused") {
		t.Errorf("output %q", got)
	}
}

func TestLimits(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sh", "-c", "ulimit -n; cat /proc/self/oom_score_adj; cat /proc/sys/kernel/hostname; touch /x || echo read-only")
	adj := 321
	b.spec.Process.OOMScoreAdj = &adj
	b.spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 123, Hard: 456}}
	b.spec.Hostname = "box"
	b.spec.Root.Readonly = true
	b.run()
	if got := b.out.String(); !strings.HasPrefix(got, "123\n321\nbox\n") || !strings.Contains(got, "read-only") {
		t.Errorf("output %q", got)
	}
}

// TestOrphansAreReaped has a process outlive its parent in the worker's own pid
// namespace.
func TestOrphansAreReaped(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sh", "-c", "(sleep 0.01 & sleep 0.02 &); exec cat")
	b.joinHost()
	path, w := b.stdin("stdin")
	b.req.Stdin = path
	b.run()
	w.Close()
	b.closeStdin("")
	b.wait("")
	b.delete("")
	eventually(t, "no child is left", func() bool { return children(n) == "" })
}

func children(n *node) string {
	n.Helper()
	var all []byte
	files, _ := filepath.Glob("/proc/" + itoa(n.cmd.Process.Pid) + "/task/*/children")
	for _, f := range files {
		b, _ := os.ReadFile(f)
		all = append(all, b...)
	}
	return string(all)
}

// TestBackgroundDoesNotHoldUpExit: what a terminal's process leaves running
// keeps the terminal open, and its exit is told all the same.
func TestBackgroundDoesNotHoldUpExit(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sleep", "1000").run()
	out := b.exec("e", func(r *taskapi.ExecProcessRequest) { r.Terminal = true }, "sh", "-c", "trap '' HUP; sleep 1000 & echo done; exit 3")
	b.startExec("e")
	start := time.Now()
	if e := b.awaitExit("e"); e.Exit.Status != 3 {
		t.Errorf("exit %v", e)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("told after %v", took)
	}
	b.delete("e")
	if got := out.String(); got != "done\r\n" {
		t.Errorf("output %q", got)
	}
}
