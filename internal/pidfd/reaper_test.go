package pidfd

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func reaper(t *testing.T) *Reaper {
	t.Helper()
	r, err := NewReaper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func follow(t *testing.T, r *Reaper, f *os.File) <-chan Exit {
	t.Helper()
	c := make(chan Exit, 2) // room to notice a second call
	if err := r.Follow(f, func(e Exit) { c <- e }); err != nil {
		t.Fatal(err)
	}
	return c
}

func expect(t *testing.T, c <-chan Exit, status uint32) {
	t.Helper()
	select {
	case e := <-c:
		if e.Status != status || e.Unknown != "" {
			t.Errorf("got %+v, want status %d", e, status)
		}
		if age := time.Since(e.At); age < 0 || age > time.Minute {
			t.Errorf("exit time is %v ago", age)
		}
	case <-deadline():
		t.Fatal("no exit was reported")
	}
	select {
	case e := <-c:
		t.Errorf("second exit %+v", e)
	default:
	}
}

var endings = []struct {
	name, script string
	status       uint32
}{
	{"success", "read x; exit 0", 0},
	{"failure", "read x; exit 7", 7},
	{"highest", "read x; exit 255", 255},
	{"killed", "read x; kill -KILL $$", 137},
	{"core dumped", "ulimit -c 0; read x; kill -QUIT $$", 131},
}

func TestFollowChild(t *testing.T) {
	for _, tt := range endings {
		t.Run(tt.name, func(t *testing.T) {
			r := reaper(t)
			p := ours(t, tt.script)
			c := follow(t, r, p.f)
			p.release()
			expect(t, c, tt.status)
			if err := Signal(p.f, 0); !errdefs.IsNotFound(err) {
				t.Errorf("child was not reaped: %v", err)
			}
		})
	}
}

func TestFollowChildThatExitedBefore(t *testing.T) {
	r := reaper(t)
	p := ours(t, "exit 3")
	exited(t, p.f)
	expect(t, follow(t, r, p.f), 3)
}

func TestFollowStrangersChild(t *testing.T) {
	for _, tt := range endings {
		for _, when := range []string{"zombie", "reaped", "reaped before"} {
			t.Run(tt.name+", "+when, func(t *testing.T) {
				r := reaper(t)
				p, reap := theirs(t, tt.script)
				if when == "reaped before" {
					p.release()
					exited(t, p.f)
					reap()
					expectReaped(t, p.f, follow(t, r, p.f), tt.status)
					return
				}
				c := follow(t, r, p.f)
				p.release()
				if when == "reaped" {
					reap()
					expectReaped(t, p.f, c, tt.status)
					return
				}
				expect(t, c, tt.status)
			})
		}
	}
}

// A stranger that reaps at once leaves no zombie to look at, or one that goes
// while we look.
func TestFollowStrangersChildRacingWithItsParent(t *testing.T) {
	r := reaper(t)
	for range 50 {
		p, reap := theirs(t, "read x; exit 5")
		c := follow(t, r, p.f)
		done := make(chan struct{})
		go func() { defer close(done); reap() }()
		p.release()
		<-done
		expectReaped(t, p.f, c, 5)
	}
}

// expectReaped is expect for a process that its parent has reaped, maybe before
// the Reaper could look at it. Nobody knows its status then before Linux 6.15.
func expectReaped(t *testing.T, f *os.File, c <-chan Exit, status uint32) {
	t.Helper()
	if _, err := ExitInfo(f); !errors.Is(err, ErrNoExitInfo) {
		expect(t, c, status)
		return
	}
	select {
	case e := <-c:
		if e.Status != status && (e.Status != UnknownStatus || !strings.Contains(e.Unknown, "6.15")) {
			t.Errorf("got %+v, want status %d, or none and why", e, status)
		}
	case <-deadline():
		t.Fatal("no exit was reported")
	}
}

func TestUnknownExitSaysWhy(t *testing.T) {
	e := unknownExit(ErrNoExitInfo)
	if e.Status != UnknownStatus || !strings.Contains(e.Unknown, "6.15") || e.At.IsZero() {
		t.Errorf("got %+v", e)
	}
}

func TestFollowManyWithoutGoroutines(t *testing.T) {
	r := reaper(t)
	const n = 60
	var procs []script
	var exits []<-chan Exit
	before := runtime.NumGoroutine()
	for range n {
		p := ours(t, "read x; exit 4")
		procs = append(procs, p)
		exits = append(exits, follow(t, r, p.f))
	}
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("%d goroutines for %d processes", after-before, n)
	}
	for _, p := range procs {
		p.release()
	}
	for _, c := range exits {
		expect(t, c, 4)
	}
}

func TestFollowTwice(t *testing.T) {
	r := reaper(t)
	p := ours(t, "read x")
	c := follow(t, r, p.f)
	if err := r.Follow(p.f, func(Exit) {}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("got %v", err)
	}
	p.release()
	expect(t, c, 1) // read fails at end of file
}

func TestFollowRefusesWhatIsNoProcess(t *testing.T) {
	r := reaper(t)
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := r.Follow(f, func(Exit) {}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
}

func TestUnfollow(t *testing.T) {
	r := reaper(t)
	p := ours(t, "read x")
	c := follow(t, r, p.f)
	r.Unfollow(p.f)
	p.release()
	exited(t, p.f)
	other := ours(t, "exit 0") // its exit comes later on the same goroutine
	expect(t, follow(t, r, other.f), 0)
	select {
	case e := <-c:
		t.Errorf("unfollowed, got %+v", e)
	default:
	}
	collect(t, p.pid)
}

// Unfollow may close f at once: no exit function runs then.
func TestUnfollowRacingWithExit(t *testing.T) {
	r := reaper(t)
	for range 100 {
		p := ours(t, "read x")
		var mu sync.Mutex
		called, over := false, false
		if err := r.Follow(p.f, func(Exit) {
			mu.Lock()
			defer mu.Unlock()
			called = true
			if over {
				t.Error("called after Unfollow returned")
			}
		}); err != nil {
			t.Fatal(err)
		}
		p.release()
		r.Unfollow(p.f)
		mu.Lock()
		over = true
		reaped := called
		mu.Unlock()
		if !reaped {
			collect(t, p.pid)
		}
		p.f.Close()
	}
}

func TestUnfollowWaitsForTheExitFunction(t *testing.T) {
	r := reaper(t)
	p := ours(t, "exit 0")
	entered, release, returned := make(chan struct{}), make(chan struct{}), make(chan struct{})
	if err := r.Follow(p.f, func(Exit) { close(entered); <-release }); err != nil {
		t.Fatal(err)
	}
	<-entered
	go func() { r.Unfollow(p.f); close(returned) }()
	for range 1000 {
		runtime.Gosched()
		select {
		case <-returned:
			t.Fatal("Unfollow returned first")
		default:
		}
	}
	close(release)
	<-returned
}

func TestCloseLeavesNothing(t *testing.T) {
	before, goroutines := descriptors(t), runtime.NumGoroutine()
	r, err := NewReaper()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Sweep(); err != nil {
		t.Fatal(err)
	}
	p := ours(t, "read x")
	c := follow(t, r, p.f)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	p.release()
	collect(t, p.pid)
	p.f.Close()
	if len(c) != 0 {
		t.Error("exit reported after Close")
	}
	if err := r.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if err := r.Follow(p.f, func(Exit) {}); err == nil {
		t.Error("Follow after Close")
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors, had %d", after, before)
	}
	// os/signal keeps one goroutine for ever.
	if after := runtime.NumGoroutine(); after > goroutines+1 {
		t.Errorf("%d goroutines, had %d", after, goroutines)
	}
}

// orphan makes a process whose parent is gone and returns it. The test must be
// a subreaper. It exits when release is called.
func orphan(t *testing.T, r *Reaper) script {
	t.Helper()
	end := r.Begin()
	defer end()
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	t.Cleanup(func() { pw.Close() })
	cmd := exec.Command("sh", "-c", "(read x; exit 6) <&3 >&- 2>&- & echo $!")
	cmd.ExtraFiles = []*os.File{pr}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	return script{pid, open(t, pid), func() { pw.Close() }}
}

func subreaper(t *testing.T) {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) })
}

// needsHangUp skips a test that uses reaped where a pidfd does not tell.
func needsHangUp(t *testing.T) {
	t.Helper()
	p := ours(t, "exit 0")
	collect(t, p.pid)
	if err := with(p.f, func(fd int) error {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, 0); err != nil {
			return err
		}
		if fds[0].Revents&unix.POLLHUP == 0 {
			t.Skip("a pidfd does not hang up when its process is reaped: Linux 6.9 does that")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// reaped waits until nothing is left of the process.
func reaped(t *testing.T, f *os.File) {
	t.Helper()
	if err := with(f, func(fd int) error {
		ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err != nil {
			return err
		}
		defer unix.Close(ep)
		// A hang-up is reported when it is reaped (Linux 6.9).
		if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{}); err != nil {
			return err
		}
		for {
			n, err := unix.EpollWait(ep, make([]unix.EpollEvent, 1), 10_000)
			if err == unix.EINTR {
				continue
			}
			if n == 0 && err == nil {
				t.Error("process is not reaped")
			}
			return err
		}
	}); err != nil {
		t.Fatal(err)
	}
}

func TestSweepReapsOrphans(t *testing.T) {
	needsHangUp(t)
	subreaper(t)
	r := reaper(t)
	early := orphan(t, r)
	early.release()
	exited(t, early.f)
	if err := r.Sweep(); err != nil {
		t.Fatal(err)
	}
	reaped(t, early.f)
	var all []script
	for range 5 {
		all = append(all, orphan(t, r))
	}
	for _, p := range all {
		p.release()
	}
	for _, p := range all {
		reaped(t, p.f)
	}
	if err := r.Sweep(); err == nil {
		t.Error("second Sweep")
	}
}

// Children of os/exec and followed children keep their status while orphans
// come and go.
func TestSweepLeavesOthersAlone(t *testing.T) {
	needsHangUp(t)
	subreaper(t)
	r := reaper(t)
	if err := r.Sweep(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 15 {
				end := r.Begin()
				if err := exec.Command("sh", "-c", "(exit 1) & exit 0").Run(); err != nil {
					t.Errorf("child of os/exec: %v", err)
				}
				end()
				end() // once is enough
			}
		})
	}
	for range 15 {
		end := r.Begin()
		p := ours(t, "exit 8")
		c := follow(t, r, p.f)
		end()
		expect(t, c, 8)
	}
	wg.Wait()
	last := orphan(t, r)
	last.release()
	reaped(t, last.f)
	if zombies := zombies(t); len(zombies) != 0 {
		t.Errorf("zombies are left: %v", zombies)
	}
}

func zombies(t *testing.T) []string {
	t.Helper()
	out, err := os.Open("/proc/self/task/" + strconv.Itoa(os.Getpid()) + "/children")
	if err != nil {
		t.Skipf("no list of children: %v", err) // CONFIG_PROC_CHILDREN
	}
	defer out.Close()
	var list []string
	sc := bufio.NewScanner(out)
	sc.Split(bufio.ScanWords)
	for sc.Scan() {
		pid, err := strconv.Atoi(sc.Text())
		if err != nil {
			t.Fatal(err)
		}
		if s, err := readStat(pid); err == nil && s.state == 'Z' {
			list = append(list, sc.Text())
		}
	}
	return list
}

func BenchmarkFollow(b *testing.B) {
	r, err := NewReaper()
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	f, err := Open(os.Getpid(), 0)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	b.ReportAllocs()
	for b.Loop() {
		if err := r.Follow(f, func(Exit) {}); err != nil {
			b.Fatal(err)
		}
		r.Unfollow(f)
	}
}
