package oom

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func watcher(t *testing.T) (*Watcher, chan string) {
	t.Helper()
	events := make(chan string, 100)
	w, err := NewWatcher(func(id string) { events <- id })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w, events
}

func add(t *testing.T, w *Watcher, id string, paths map[string]string) {
	t.Helper()
	if err := w.Add(id, paths); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, events <-chan string, want string) {
	t.Helper()
	select {
	case id := <-events:
		if id != want {
			t.Errorf("event for %s, want %s", id, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("no event for %s", want)
	}
}

func kills(t *testing.T, paths map[string]string, want uint64) {
	t.Helper()
	if n, err := Kills(paths); err != nil || n != want {
		t.Errorf("%d kills, %v, want %d", n, err, want)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// group is a memory cgroup of v1 with a limit.
func group(t *testing.T, parent string, limit int) string {
	t.Helper()
	const root = "/sys/fs/cgroup/memory"
	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil || fs.Type != unix.CGROUP_SUPER_MAGIC {
		t.Skip("no memory controller of cgroup v1 at " + root)
	}
	if parent == "" {
		parent = root
	}
	dir, err := os.MkdirTemp(parent, "kuasar-oom-test-")
	if err != nil {
		t.Skipf("cannot make a cgroup: %v", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
	})
	set(t, dir, "memory.limit_in_bytes", fmt.Sprint(limit))
	if _, err := os.Stat(dir + "/memory.memsw.limit_in_bytes"); err == nil {
		set(t, dir, "memory.memsw.limit_in_bytes", fmt.Sprint(limit))
	}
	return dir
}

func set(t *testing.T, dir, name, value string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

func v1(dir string) map[string]string { return map[string]string{"memory": dir, "pids": "/none"} }

// gorge has a process in the cgroup take more memory than it may. The shell
// beside it lives on.
func gorge(t *testing.T, dir string) {
	t.Helper()
	out, err := exec.Command("sh", "-c", "echo $$ > "+dir+"/cgroup.procs; dd if=/dev/zero of=/dev/null bs=64M count=1; echo $?").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "137") {
		t.Fatalf("dd was not killed: %s, %v", out, err)
	}
}

const limit = 16 << 20

func TestKillInV1(t *testing.T) {
	dir := group(t, "", limit)
	w, events := watcher(t)
	add(t, w, "c", v1(dir))
	kills(t, v1(dir), 0)
	for n := range uint64(3) {
		gorge(t, dir)
		expect(t, events, "c")
		kills(t, v1(dir), n+1)
	}
	if n := len(events); n != 0 {
		t.Errorf("%d events too many", n)
	}
}

// A pod at its limit: the kernel tells all its containers, and kills in one.
func TestKillInASiblingInV1(t *testing.T) {
	pod := group(t, "", limit)
	victim, other := group(t, pod, 1<<30), group(t, pod, 1<<30)
	w, events := watcher(t)
	add(t, w, "other", v1(other))
	add(t, w, "victim", v1(victim))
	gorge(t, victim)
	expect(t, events, "victim")
	kills(t, v1(other), 0)
	gorge(t, other) // while it still waits for the kill that was not its own
	expect(t, events, "other")
	if n := len(events); n != 0 {
		t.Errorf("%d events too many", n)
	}
}

func TestKillBelowInV1(t *testing.T) {
	dir := group(t, "", limit)
	w, events := watcher(t)
	add(t, w, "c", v1(dir))
	inner := filepath.Join(dir, "inner", "most")
	if err := os.MkdirAll(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = os.Remove(inner), os.Remove(filepath.Dir(inner)) })
	gorge(t, inner)
	expect(t, events, "c")
	kills(t, v1(dir), 1)
	if err := errors.Join(os.Remove(inner), os.Remove(filepath.Dir(inner))); err != nil {
		t.Fatal(err)
	}
	gorge(t, dir) // the count is 1 again
	gorge(t, dir)
	expect(t, events, "c")
}

func TestRemovalInV1IsNoEvent(t *testing.T) {
	w, events := watcher(t)
	gone, stays := group(t, "", limit), group(t, "", limit)
	add(t, w, "gone", v1(gone))
	add(t, w, "stays", v1(stays))
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	gorge(t, stays)
	expect(t, events, "stays")
	if _, err := Kills(v1(gone)); !errdefs.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
	if err := w.Add("again", v1(gone)); !errdefs.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
	w.Remove("gone")
	if n := len(events); n != 0 {
		t.Errorf("%d events too many", n)
	}
}

func TestRemoveInV1(t *testing.T) {
	w, events := watcher(t)
	dir := group(t, "", limit)
	before := descriptors(t)
	add(t, w, "a", v1(dir))
	if err := w.Add("a", v1(dir)); !errdefs.IsAlreadyExists(err) {
		t.Errorf("got %v", err)
	}
	w.Remove("a")
	w.Remove("a")
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, had %d", after, before)
	}
	add(t, w, "b", v1(dir))
	gorge(t, dir)
	expect(t, events, "b")
}

// group2 is a cgroup of v2 with a limit, which shares out its memory.
func group2(t *testing.T, parent string, limit int) string {
	t.Helper()
	const root = "/sys/fs/cgroup"
	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		t.Skip("no cgroup v2 at " + root)
	}
	if parent == "" {
		parent = root
	}
	dir, err := os.MkdirTemp(parent, "kuasar-oom-test-")
	if err != nil {
		t.Skipf("cannot make a cgroup: %v", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
	})
	if _, err := os.Stat(dir + "/memory.max"); err != nil {
		t.Skip("no memory controller of cgroup v2 below " + parent)
	}
	set(t, dir, "memory.max", fmt.Sprint(limit))
	if _, err := os.Stat(dir + "/memory.swap.max"); err == nil {
		set(t, dir, "memory.swap.max", "0")
	}
	return dir
}

func TestKillInV2(t *testing.T) {
	dir := group2(t, "", limit)
	w, events := watcher(t)
	add(t, w, "c", v2(dir))
	kills(t, v2(dir), 0)
	for n := range uint64(3) {
		gorge(t, dir)
		expect(t, events, "c")
		kills(t, v2(dir), n+1)
	}
	w.Remove("c")
	gorge(t, dir)
	add(t, w, "again", v2(dir))
	gorge(t, dir)
	expect(t, events, "again")
	if n := len(events); n != 0 {
		t.Errorf("%d events too many", n)
	}
}

// A pod at its limit kills in one of its containers, and that one tells.
func TestKillInASiblingInV2(t *testing.T) {
	pod := group2(t, "", limit)
	set(t, pod, "cgroup.subtree_control", "+memory")
	victim, other := group2(t, pod, 1<<30), group2(t, pod, 1<<30)
	w, events := watcher(t)
	add(t, w, "other", v2(other))
	add(t, w, "victim", v2(victim))
	gorge(t, victim)
	expect(t, events, "victim")
	kills(t, v2(other), 0)
	gorge(t, other)
	expect(t, events, "other")
	if n := len(events); n != 0 {
		t.Errorf("%d events too many", n)
	}
}

// A container's own groups are below its, with a memory controller or without,
// and their kills count when they are gone, too.
func TestKillBelowInV2(t *testing.T) {
	dir := group2(t, "", limit)
	w, events := watcher(t)
	add(t, w, "c", v2(dir))
	inner := filepath.Join(dir, "inner")
	for n, controllers := range []string{"", "+memory"} {
		set(t, dir, "cgroup.subtree_control", controllers)
		if err := os.Mkdir(inner, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(inner) })
		gorge(t, inner)
		expect(t, events, "c")
		if err := os.Remove(inner); err != nil {
			t.Fatal(err)
		}
		kills(t, v2(dir), uint64(n)+1)
	}
}

func TestRemovalInV2IsNoEvent(t *testing.T) {
	w, events := watcher(t)
	gone, stays := group2(t, "", limit), group2(t, "", limit)
	add(t, w, "gone", v2(gone))
	add(t, w, "stays", v2(stays))
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	gorge(t, stays)
	expect(t, events, "stays")
	if _, err := Kills(v2(gone)); !errdefs.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
	w.Remove("gone")
	if n := len(events); n != 0 {
		t.Errorf("%d events too many", n)
	}
}

// fake stands for a cgroup of v2.
func fake(t *testing.T) (dir string, count func(n int)) {
	t.Helper()
	dir = t.TempDir()
	f, err := os.Create(filepath.Join(dir, v2File))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	count = func(n int) {
		if _, err := f.WriteAt(fmt.Appendf(nil, "low 0\nhigh 0\nmax 12\noom 4\noom_kill %d\noom_group_kill 0\n", n), 0); err != nil {
			t.Fatal(err)
		}
	}
	count(0)
	return dir, count
}

func v2(dir string) map[string]string { return map[string]string{"": dir} }

func TestV2(t *testing.T) {
	w, events := watcher(t)
	dir, count := fake(t)
	add(t, w, "c", v2(dir))
	count(0) // something else was counted
	count(2)
	expect(t, events, "c")
	kills(t, v2(dir), 2)
	count(3)
	expect(t, events, "c")
	if err := w.Add("d", v2(dir)); !errdefs.IsAlreadyExists(err) {
		t.Errorf("same cgroup: got %v", err)
	}
	count(4)
	expect(t, events, "c") // and not harmed by it
	w.Remove("c")
	count(5)
	add(t, w, "e", v2(dir))
	count(6)
	expect(t, events, "e")
	if err := os.Remove(filepath.Join(dir, v2File)); err != nil {
		t.Fatal(err)
	}
	other, countOther := fake(t)
	add(t, w, "other", v2(other))
	countOther(1)
	expect(t, events, "other")
	if n := len(events); n != 0 {
		t.Errorf("%d events too many", n)
	}
}

func TestV2AfterAnOverflow(t *testing.T) {
	w, events := watcher(t)
	dir, _ := fake(t)
	add(t, w, "c", v2(dir))
	w.mu.Lock()
	v := w.watches["c"]
	v.counter.dir, _ = otherCount(t)
	w.mu.Unlock()
	w.all()
	expect(t, events, "c")
}

func otherCount(t *testing.T) (string, func(int)) {
	dir, count := fake(t)
	count(9)
	return dir, count
}

func TestWithoutAMemoryController(t *testing.T) {
	w, _ := watcher(t)
	before := descriptors(t)
	old := t.TempDir()
	if err := os.WriteFile(filepath.Join(old, v2File), []byte("low 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		paths map[string]string
		is    func(error) bool
	}{
		{"no paths", nil, errdefs.IsNotImplemented},
		{"other controllers", map[string]string{"pids": "/sys/fs/cgroup/pids"}, errdefs.IsNotImplemented},
		{"v2 without memory", v2(t.TempDir()), errdefs.IsNotImplemented},
		{"v2 gone", v2("/none"), errdefs.IsNotFound},
		{"v1 gone", v1("/none"), errdefs.IsNotFound},
		{"old kernel", v2(old), errdefs.IsNotImplemented},
	} {
		if err := w.Add(tt.name, tt.paths); !tt.is(err) {
			t.Errorf("%s: got %v", tt.name, err)
		}
		if _, err := Kills(tt.paths); err == nil {
			t.Errorf("%s: counted", tt.name)
		}
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, had %d", after, before)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	before, goroutines := descriptors(t), runtime.NumGoroutine()
	w, err := NewWatcher(func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	dir, _ := fake(t) // one descriptor
	add(t, w, "v2", v2(dir))
	if err := errors.Join(w.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	if err := w.Add("late", v2(dir)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v", err)
	}
	if after := descriptors(t); after != before+1 {
		t.Errorf("%d descriptors, had %d", after, before+1)
	}
	if after := runtime.NumGoroutine(); after > goroutines {
		t.Errorf("%d goroutines, had %d", after, goroutines)
	}
}

func TestClockRingsOnce(t *testing.T) {
	c, err := newClock()
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	c.set(time.Hour)
	c.set(time.Millisecond)
	fds := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, 10_000); n != 1 || err != nil {
		t.Fatalf("poll: %d, %v", n, err)
	}
	c.clear()
	if n, err := unix.Poll(fds, 0); n != 0 || err != nil {
		t.Errorf("poll: %d, %v", n, err)
	}
}

func BenchmarkKills(b *testing.B) {
	paths := v1("/sys/fs/cgroup/memory")
	if _, err := os.Stat(paths["memory"]); err != nil {
		b.Skip("no cgroup v1")
	}
	dir, err := os.MkdirTemp(paths["memory"], "kuasar-oom-test-")
	if err != nil {
		b.Skipf("cannot make a cgroup: %v", err)
	}
	defer os.Remove(dir)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Kills(v1(dir)); err != nil {
			b.Fatal(err)
		}
	}
}
