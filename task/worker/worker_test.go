package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/cgroup"
	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/task"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/task/hold"
)

const patience = 20 * time.Second

// group is the cgroup of all workers of this run of the tests.
var group = fmt.Sprintf("/kuasar-worker-test-%d", os.Getpid())

type bench struct {
	*testing.T
	dir string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: a worker gets a cgroup of its own")
	}
	dir, err := os.MkdirTemp("", "w") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t, dir}
	t.Cleanup(b.clean)
	return b
}

// clean kills the worker that the lock says is there.
func (b *bench) clean() {
	w := &Worker{cfg: Config{Dir: b.dir}}
	if _, err := w.lock(); errors.Is(err, errBusy) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if pid, err := listener(ctx, filepath.Join(b.dir, agentSocket)); err == nil {
			b.kill(uint32(pid))
		} else {
			b.Errorf("a worker is left and does not listen: %v", err)
		}
	}
	if err := os.RemoveAll(b.dir); err != nil {
		b.Error(err)
	}
	if err := cgroup.Remove(group); err != nil && !errors.Is(err, unix.EBUSY) {
		b.Error(err)
	}
}

// daemon is one life of the daemon.
func (b *bench) daemon(find func() (string, error)) *Worker {
	b.Helper()
	if find == nil {
		find = os.Executable
	}
	w, err := New(Config{Find: find, Dir: b.dir, Cgroup: group})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := w.Close(); err != nil {
			b.Error(err)
		}
	})
	return w
}

func (b *bench) agent(w *Worker) *task.Client {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	defer cancel()
	c, err := w.Agent(ctx)
	if err != nil {
		b.Fatal(err)
	}
	return c
}

func (b *bench) pid(c *task.Client) uint32 {
	b.Helper()
	info, err := c.Info(b.Context(), &api.InfoRequest{})
	if err != nil {
		b.Fatal(err)
	}
	return info.Pid
}

// hold makes the worker hold something for a container.
func (b *bench) hold(c *task.Client) (key string) {
	b.Helper()
	key = hold.Key("ns", "c", "", hold.Pidfd)
	if _, err := c.Retained(b.Context(), &api.RetainedRequest{ContainerId: key}); err != nil {
		b.Fatal(err)
	}
	return key
}

// kill returns when the process is gone.
func (b *bench) kill(pid uint32) {
	b.Helper()
	f, err := pidfd.Open(int(pid), 0)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := pidfd.Signal(f, unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
		b.Fatal(err)
	}
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}, int(patience.Milliseconds())); n != 1 || err != nil {
		b.Fatalf("worker %d does not die: %v", pid, err)
	}
}

func (b *bench) gone(c *task.Client) {
	b.Helper()
	select {
	case <-c.Done():
	case <-time.After(patience):
		b.Fatal("the connection stays")
	}
}

func TestAllShareOneStart(t *testing.T) {
	b := newBench(t)
	w := b.daemon(nil)
	if pids := w.Pids(); len(pids) != 0 {
		t.Errorf("pids before the first: %v", pids)
	}
	pids := make(chan uint32, 20)
	var callers sync.WaitGroup
	for range cap(pids) {
		callers.Go(func() { pids <- b.pid(b.agent(w)) })
	}
	callers.Wait()
	first := <-pids
	for range cap(pids) - 1 {
		if pid := <-pids; pid != first {
			t.Errorf("workers %d and %d", first, pid)
		}
	}
	if pids := w.Pids(); !slices.Equal(pids, []uint32{first}) {
		t.Errorf("pids: %v, want %d", pids, first)
	}
}

func TestWorkerLeavesTheDaemonsCgroups(t *testing.T) {
	b := newBench(t)
	pid := b.pid(b.agent(b.daemon(nil)))
	text, err := os.ReadFile("/proc/" + itoa(pid) + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	hierarchies, err := cgroup.Hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	inside := 0
	for line := range strings.Lines(string(text)) {
		if strings.HasSuffix(strings.TrimSpace(line), ":"+group) {
			inside++
		}
	}
	if all := len(hierarchies); inside != all || all == 0 {
		t.Errorf("in %d of %d hierarchies:\n%s", inside, all, text)
	}
	session, err := unix.Getsid(int(pid))
	if err != nil || session != int(pid) {
		t.Errorf("session %d, %v", session, err)
	}
}

func TestWorkerIsAdopted(t *testing.T) {
	b := newBench(t)
	old := b.daemon(nil)
	c := b.agent(old)
	pid, key := b.pid(c), b.hold(c)
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := old.Agent(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("agent of a closed worker: %v", err)
	}
	none := func() (string, error) { return "", errors.New("it is not needed") }
	w := b.daemon(none)
	if pids := w.Pids(); !slices.Equal(pids, []uint32{pid}) {
		t.Errorf("pids before it is adopted: %v, want %d", pids, pid)
	}
	if got := b.pid(b.agent(w)); got != pid {
		t.Errorf("worker %d, want %d", got, pid)
	}
	if keys := w.keeper.Keys(); !slices.Equal(keys, []string{key}) {
		t.Errorf("kept: %q", keys)
	}
}

func TestWorkerIsReplacedWithWhatItHeld(t *testing.T) {
	b := newBench(t)
	w := b.daemon(nil)
	c := b.agent(w)
	pid, key := b.pid(c), b.hold(c)
	b.kill(pid)
	b.gone(c)
	// Nobody asks for it, and yet it comes.
	w.mu.Lock()
	s := w.session
	w.mu.Unlock()
	if s != nil {
		select {
		case <-s.over:
		case <-s.ready:
		case <-time.After(patience):
			t.Fatal("nothing happens")
		}
	}
	next := b.agent(w)
	if got := b.pid(next); got == pid {
		t.Errorf("the dead worker %d answers", got)
	}
	list, err := next.List(t.Context(), &api.ListRequest{})
	if err != nil || len(list.Processes) != 1 || list.Processes[0].ContainerId != key {
		t.Errorf("it was given %v, %v; want %s", list, err, key)
	}
	if pids := w.Pids(); len(pids) != 2 || pids[1] != pid {
		t.Errorf("pids: %v, want %d as the second", pids, pid)
	}
}

func TestWorkerThatHeldNothingIsNotReplaced(t *testing.T) {
	b := newBench(t)
	w := b.daemon(nil)
	c := b.agent(w)
	w.mu.Lock()
	s := w.session
	w.mu.Unlock()
	b.kill(b.pid(c))
	select {
	case <-s.over:
	case <-time.After(patience):
		t.Fatal("its death goes unnoticed")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.session != nil {
		t.Error("another is started for nothing")
	}
}

func TestBadPrograms(t *testing.T) {
	for _, test := range []struct {
		name, kind string
		find       func() (string, error)
		is         func(error) bool
		want       []string
	}{
		{"missing", "", func() (string, error) { return "/no/such/kuasar-task", nil }, errdefs.IsNotFound, []string{"/no/such/kuasar-task", "install"}},
		{"not executable", "", func() (string, error) { return "/etc/passwd", nil }, errdefs.IsFailedPrecondition, []string{"/etc/passwd", "executable"}},
		{"another program", "stranger", nil, errdefs.IsFailedPrecondition, []string{"is it kuasar-task?"}},
		{"one that dies", "dies", nil, errdefs.IsFailedPrecondition, []string{"ended before", "no kernel, no fun"}},
		{"another release", "old", nil, errdefs.IsFailedPrecondition, []string{"protocol 0", "install", "worker.test"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t)
			t.Setenv(kind, test.kind)
			w := b.daemon(test.find)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			for range 2 { // it does not get stuck
				_, err := w.Agent(ctx)
				if err == nil || !test.is(err) {
					t.Fatalf("got %v", err)
				}
				for _, want := range test.want {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("%q does not say %q", err, want)
					}
				}
			}
		})
	}
}

func TestWorkerThatDiesWhileItIsAskedIsReplaced(t *testing.T) {
	b := newBench(t)
	t.Setenv(kind, "dies once")
	w := b.daemon(nil)
	b.pid(b.agent(w))
	if _, err := os.Stat(filepath.Join(b.dir, "once")); err != nil {
		t.Errorf("the first did not die: %v", err)
	}
}

func TestWorkerOfAnotherReleaseKeepsItsContainers(t *testing.T) {
	b := newBench(t)
	t.Setenv(kind, "old")
	if err := os.MkdirAll(filepath.Join(b.dir, "containers", "ns", "c"), 0o700); err != nil {
		t.Fatal(err)
	}
	w := b.daemon(nil)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := w.Agent(ctx); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "goes on") {
		t.Errorf("got %v", err)
	}
	if lock, err := w.lock(); !errors.Is(err, errBusy) {
		lock.Close()
		t.Errorf("the worker is gone: %v", err)
	}
}

func TestStartIsGivenUp(t *testing.T) {
	b := newBench(t)
	t.Setenv(kind, "mute")
	w := b.daemon(nil)
	lock, err := w.lock()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := w.start(ctx, lock); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	lock.Close()
	if lock, err = w.lock(); err != nil {
		t.Fatalf("a worker that never answered is left: %v", err)
	}
	lock.Close()
}

// The daemon died right after the fork; the next one must wait for the worker
// instead of starting a second, unless it dies too.
func TestWorkerOfADaemonThatDied(t *testing.T) {
	b := newBench(t)
	forked := b.orphan("")
	if got := b.pid(b.agent(b.daemon(nil))); got != forked {
		t.Errorf("worker %d, want the forked %d", got, forked)
	}
}

func TestWorkerThatDiedWithItsDaemon(t *testing.T) {
	b := newBench(t)
	b.orphan("dies late")
	b.pid(b.agent(b.daemon(nil)))
}

// orphan is a worker that is about to listen, or to die.
func (b *bench) orphan(behaviour string) uint32 {
	t := b.T
	t.Helper()
	t.Setenv(kind, behaviour)
	defer os.Unsetenv(kind)
	dead := &Worker{cfg: Config{Find: os.Executable, Dir: b.dir, Cgroup: group}}
	lock, err := dead.lock()
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	forked, err := dead.fork(exe, []*os.File{null, null, null, null, lock})
	if err != nil {
		t.Fatal(err)
	}
	lock.Close()
	return uint32(forked)
}

func TestLongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("x", 120))
	w, err := New(Config{Dir: dir, Find: os.Executable})
	if err != nil {
		t.Fatalf("it must fail later, when somebody needs it: %v", err)
	}
	defer w.Close()
	if _, err := w.Agent(t.Context()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "too long") || !strings.Contains(err.Error(), dir) {
		t.Errorf("got %v", err)
	}
}

func TestEnvironment(t *testing.T) {
	all := []string{"PATH=/bin", "NOTIFY_SOCKET=/run/x", "LISTEN_FDS=1", "KUASAR_FAILPOINT=a", "KUASAR=1"}
	if got := environ(all, true); !slices.Equal(got, []string{"PATH=/bin", "KUASAR_FAILPOINT=a", "KUASAR=1"}) {
		t.Errorf("of the first: %q", got)
	}
	if got := environ(all, false); !slices.Equal(got, []string{"PATH=/bin", "KUASAR=1"}) {
		t.Errorf("of the next: %q", got)
	}
}

func TestLogIsPutAside(t *testing.T) {
	w := &Worker{cfg: Config{Dir: t.TempDir()}}
	worker, offset, err := w.openLog()
	if err != nil || offset != 0 {
		t.Fatalf("offset %d, %v", offset, err)
	}
	defer worker.Close()
	if _, err := worker.Write(make([]byte, maxLog+1)); err != nil {
		t.Fatal(err)
	}
	for range tendCalls {
		w.tend()
	}
	if _, err := worker.WriteString("after"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int64{logFile: 5, logFile + ".old": maxLog + 1} {
		if info, err := os.Stat(filepath.Join(w.cfg.Dir, name)); err != nil || info.Size() != want {
			t.Errorf("%s: %v, %v, want %d bytes", name, info, err, want)
		}
	}
}

func itoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
