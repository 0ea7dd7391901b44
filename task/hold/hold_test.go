package hold

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func listen(t testing.TB, path string) *Holder {
	t.Helper()
	h, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func keeper(t testing.TB) *Keeper {
	k := NewKeeper()
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

func connect(t testing.TB, k *Keeper, path string) *Link {
	t.Helper()
	l, err := k.Connect(bounded(t), path)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// restore is a worker's start: in it the daemon has connected.
func restore(t testing.TB, h *Holder) map[string]*os.File {
	t.Helper()
	files, err := h.Restore(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for f := range maps.Values(files) {
			f.Close()
		}
	})
	return files
}

// done waits until the daemon has dealt with everything a worker sent that is
// closed now.
func done(t testing.TB, l *Link) {
	t.Helper()
	select {
	case <-l.Done():
	case <-bounded(t).Done():
		t.Fatal("the connection does not end")
	}
}

// sent waits until the Drops before are on their way.
func sent(t testing.TB, h *Holder) {
	t.Helper()
	if err := h.Hold("last", os.Stdin); err != nil {
		t.Fatal(err)
	}
}

func expectKeys(t testing.TB, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("keys are %q, want %q", got, want)
	}
}

// pipe returns the end to hold, and a check that a descriptor is it.
func pipe(t testing.TB) (w *os.File, is func(other *os.File) bool) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return w, func(other *os.File) bool {
		a, errA := identity(w)
		b, errB := identity(other)
		return errA == nil && errB == nil && a == b
	}
}

func identity(f *os.File) (string, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return fmt.Sprint(st.Dev, st.Ino), err
}

func expectHeld(t testing.TB, k *Keeper, key string, is func(*os.File) bool) {
	t.Helper()
	f, err := k.Get(key)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	if !is(f) {
		t.Errorf("%s is another descriptor", key)
	}
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("%s would leak into children: %v", key, err)
	}
}

func count(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestKey(t *testing.T) {
	if got := Key("ns", "c", "", Pidfd); got != "ns/c//pidfd" {
		t.Errorf("got %q", got)
	}
	for key, ok := range map[string]bool{
		Key("k8s.io", strings.Repeat("a", 76), strings.Repeat("b", 76), Pty): true,
		"":                        false,
		"a\nb":                    false,
		"a\xffb":                  false,
		strings.Repeat("k", 512):  true,
		strings.Repeat("k", 513):  false,
		strings.Repeat("<", 512):  true, // six bytes each in JSON
		strings.Repeat("\\", 512): true,
	} {
		if err := checkKey(key); (err == nil) != ok {
			t.Errorf("%.20q: %v", key, err)
		}
	}
}

func TestDaemonGetsWhatTheWorkerHolds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	h, k := listen(t, path), keeper(t)
	early, isEarly := pipe(t)
	if err := h.Hold("early", early); err != nil { // before there is a daemon
		t.Fatal(err)
	}
	l := connect(t, k, path)
	if files := restore(t, h); len(files) != 1 {
		t.Errorf("restored %d descriptors, held one", len(files))
	}
	expectKeys(t, k.Keys(), "early")
	expectHeld(t, k, "early", isEarly)

	late, isLate := pipe(t)
	gone, _ := pipe(t)
	long := strings.Repeat("<", maxKey)
	for key, f := range map[string]*os.File{"late": late, "gone": gone, long: gone} {
		if err := h.Hold(key, f); err != nil {
			t.Fatal(err)
		}
	}
	h.Drop("gone")
	h.Drop("never was")
	sent(t, h)
	if err := h.Close(); err != nil { // the worker dies
		t.Fatal(err)
	}
	done(t, l)
	if err := l.Err(); err != nil {
		t.Errorf("link: %v", err)
	}
	expectKeys(t, k.Keys(), long, "early", "last", "late")
	expectHeld(t, k, "late", isLate)
	if _, err := k.Get("gone"); !errdefs.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
}

func TestNextWorkerGetsThemBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first, k := listen(t, path), keeper(t)
	l := connect(t, k, path)
	a, isA := pipe(t)
	b, isB := pipe(t)
	if err := errors.Join(first.Hold("a", a), first.Hold("b", b)); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	done(t, l)

	second := listen(t, path) // where the socket of the first still is
	l = connect(t, k, path)
	files := restore(t, second)
	if len(files) != 2 || !isA(files["a"]) || !isB(files["b"]) {
		t.Errorf("restored %v", files)
	}
	second.Drop("a")
	sent(t, second)
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	done(t, l)
	expectKeys(t, k.Keys(), "b", "last")
}

func TestNextDaemonGetsThemAll(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	h, first := listen(t, path), NewKeeper()
	connect(t, first, path)
	restore(t, h)
	a, isA := pipe(t)
	if err := h.Hold("a", a); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil { // the daemon dies
		t.Fatal(err)
	}
	b, isB := pipe(t)
	if err := h.Hold("b", b); err != nil { // while none is there
		t.Fatal(err)
	}
	second := keeper(t)
	connect(t, second, path)
	expectKeys(t, second.Keys(), "a", "b")
	expectHeld(t, second, "a", isA)
	expectHeld(t, second, "b", isB)
}

// What a daemon holds that comes back to the same worker is what that worker
// let go of, or has something else for.
func TestWorkerCorrectsADaemonThatComesBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	h, k := listen(t, path), keeper(t)
	l := connect(t, k, path)
	restore(t, h)
	old, _ := pipe(t)
	for _, key := range []string{"dropped", "reused", "kept"} {
		if err := h.Hold(key, old); err != nil {
			t.Fatal(err)
		}
	}
	connect(t, k, path) // here it has them all
	l = k.link
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	done(t, l)
	h.Drop("dropped")
	fresh, isFresh := pipe(t)
	if err := h.Hold("reused", fresh); err != nil {
		t.Fatal(err)
	}
	expectKeys(t, k.Keys(), "dropped", "kept", "reused")
	connect(t, k, path)
	expectKeys(t, k.Keys(), "kept", "reused")
	expectHeld(t, k, "reused", isFresh)
}

func TestHoldAgainReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	h, k := listen(t, path), keeper(t)
	connect(t, k, path)
	before := count(t)
	first, _ := pipe(t)
	second, isSecond := pipe(t)
	for _, f := range []*os.File{first, second} {
		if err := h.Hold("key", f); err != nil {
			t.Fatal(err)
		}
	}
	connect(t, k, path)
	expectHeld(t, k, "key", isSecond)
	if after := count(t); after != before+4+2 { // two pipes; one duplicate here, one there
		t.Errorf("%d descriptors, had %d", after, before)
	}
}

func TestDropAll(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	h, k := listen(t, path), keeper(t)
	connect(t, k, path)
	f, _ := pipe(t)
	for _, key := range []string{"ns/c1//pidfd", "ns/c1/e/pty", "ns/c10//pidfd"} {
		if err := h.Hold(key, f); err != nil {
			t.Fatal(err)
		}
	}
	h.DropAll("ns/c1/")
	connect(t, k, path)
	expectKeys(t, k.Keys(), "ns/c10//pidfd")
}

// A daemon that died in the middle of its greeting has given us what it had,
// also what was not received yet when the next one came.
func TestRestoreAfterAHalfGreeting(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	h, k := listen(t, path), keeper(t)
	f, is := pipe(t)
	c := dial(t, path)
	const n = 500
	for i := range n {
		if err := c.send(message{Op: opHold, Key: fmt.Sprint(i)}, int(f.Fd())); err != nil {
			t.Fatal(err)
		}
	}
	c.conn.Close()
	connect(t, k, path)
	files := restore(t, h)
	if len(files) != n || !is(files[fmt.Sprint(n-1)]) {
		t.Errorf("restored %d", len(files))
	}
	if got := len(k.Keys()); got != n {
		t.Errorf("daemon holds %d", got)
	}
}

func TestRestore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	h := listen(t, path)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := h.Restore(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without a daemon: got %v", err)
	}
	if _, err := h.Restore(bounded(t)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("twice: got %v", err)
	}
	closed := listen(t, path)
	failed := make(chan error)
	go func() {
		_, err := closed.Restore(bounded(t))
		failed <- err
	}()
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err == nil {
		t.Error("restored from nowhere")
	}
	f, _ := pipe(t)
	if err := closed.Hold("x", f); err == nil {
		t.Error("held after Close")
	}
}

func TestNewerDaemonReplacesTheOlder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	h := listen(t, path)
	first, second := keeper(t), keeper(t)
	l := connect(t, first, path)
	connect(t, second, path)
	done(t, l)
	f, _ := pipe(t)
	if err := h.Hold("a", f); err != nil {
		t.Fatal(err)
	}
	connect(t, second, path)
	expectKeys(t, second.Keys(), "a")
	expectKeys(t, first.Keys())
}

// A daemon that is stopped must not stop the worker.
func TestDaemonThatDoesNotRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	h := listen(t, path)
	c := dial(t, path)
	if err := c.send(message{Op: opDone}, -1); err != nil {
		t.Fatal(err)
	}
	restore(t, h)
	f, _ := pipe(t)
	begin := time.Now()
	for i := range 2000 { // more than the socket takes
		if err := h.Hold(fmt.Sprint(i), f); err != nil {
			t.Fatal(err)
		}
	}
	if d := time.Since(begin); d > 10*patience {
		t.Errorf("the worker waited %v", d)
	}
	k := keeper(t)
	connect(t, k, path) // and another one gets all
	if n := len(k.Keys()); n != 2000 {
		t.Errorf("%d keys", n)
	}
}

func TestConnect(t *testing.T) {
	k := keeper(t)
	path := filepath.Join(t.TempDir(), "s")
	before := count(t)
	if _, err := k.Connect(bounded(t), path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no worker: got %v", err)
	}
	// A worker that accepts and says nothing.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 8)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := k.Connect(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silent worker: got %v", err)
	}
	if after := count(t); after != before+1 {
		t.Errorf("%d descriptors, had %d", after, before+1)
	}
	closed := NewKeeper()
	if err := errors.Join(closed.Close(), closed.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := closed.Connect(bounded(t), path); err == nil {
		t.Error("connected after Close")
	}
}

func TestListenRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"a file":       filepath.Join(dir, "file"),
		"a long path":  filepath.Join(dir, strings.Repeat("x", 120)),
		"no directory": filepath.Join(dir, "none", "s"),
	} {
		if h, err := Listen(path); err == nil {
			h.Close()
			t.Errorf("%s: no error", name)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(b) != "precious" {
		t.Errorf("the file is %q, %v", b, err)
	}
}

// A worker that died has given us what it sent, also what was not received yet
// when the next one was there, and also if it had not read all from us.
func TestConnectAfterAWorkerDied(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	f, _ := pipe(t)
	const n = 100
	for _, greeted := range []bool{true, false} {
		k := keeper(t)
		worker := accept(t, path)
		connected := make(chan error, 1)
		go func() {
			_, err := k.Connect(bounded(t), path)
			connected <- err
		}()
		w := <-worker
		if greeted {
			if m, _, err := w.receive(); err != nil || m.Op != opDone {
				t.Fatalf("daemon greets with %+v, %v", m, err)
			}
		}
		if err := w.send(message{Op: opDone}, -1); err != nil {
			t.Fatal(err)
		}
		if err := <-connected; err != nil {
			t.Fatal(err)
		}
		for i := range n {
			if err := w.send(message{Op: opHold, Key: fmt.Sprint(i)}, int(f.Fd())); err != nil {
				t.Fatal(err)
			}
		}
		w.conn.Close()
		next := listen(t, path)
		connect(t, k, path)
		if files := restore(t, next); len(files) != n {
			t.Errorf("greeted %t: the next worker got %d of %d", greeted, len(files), n)
		}
	}
}

// accept is a worker that can say anything, once a daemon has connected.
func accept(t testing.TB, path string) <-chan wire {
	t.Helper()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	listener, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	wires := make(chan wire, 1)
	go func() {
		defer close(wires)
		defer listener.Close()
		if conn, err := listener.AcceptUnix(); err == nil {
			t.Cleanup(func() { conn.Close() })
			wires <- wire{conn}
		}
	}()
	return wires
}

// Whatever the order of events, in the end the daemon has what the worker has.
func TestBothAgreeInTheEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	before, goroutines := count(t), runtime.NumGoroutine()
	h, k := listen(t, path), keeper(t)
	connect(t, k, path)
	restore(t, h)
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(n)))
			for range 300 {
				key := fmt.Sprint(n, "/", random.IntN(10))
				if random.IntN(2) == 0 {
					h.Drop(key)
				} else if err := h.Hold(key, os.Stdin); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		for range 40 {
			connect(t, k, path)
		}
	})
	wg.Wait()
	sent(t, h)
	ours := h.table.keys("")
	l := k.link
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	done(t, l)
	expectKeys(t, k.Keys(), ours...)
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	if after := count(t); after != before {
		t.Errorf("%d descriptors, had %d", after, before)
	}
	for ctx := bounded(t); runtime.NumGoroutine() > goroutines; runtime.Gosched() {
		if ctx.Err() != nil { // those that said they are done are gone by now
			t.Fatalf("%d goroutines, had %d", runtime.NumGoroutine(), goroutines)
		}
	}
}

func BenchmarkHoldDrop(b *testing.B) {
	path := filepath.Join(b.TempDir(), "s")
	h, k := listen(b, path), keeper(b)
	connect(b, k, path)
	b.ReportAllocs()
	for b.Loop() {
		if err := h.Hold("ns/container//pidfd", os.Stdin); err != nil {
			b.Fatal(err)
		}
		h.Drop("ns/container//pidfd")
	}
}
