package pidfd

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// helper makes the test binary a parent that reaps its child only when told.
const helper = "KUASAR_TEST_PARENT"

func TestMain(m *testing.M) {
	if script := os.Getenv(helper); script != "" {
		beParent(script)
	}
	os.Exit(m.Run())
}

// beParent runs the script as a child, prints its pid, and waits for it once
// its own stdin ends. The child's stdin is descriptor 3.
func beParent(script string) {
	cmd := exec.Command("sh", "-c", script)
	cmd.Stdin = os.NewFile(3, "child's stdin")
	if err := cmd.Start(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(cmd.Process.Pid)
	_, _ = io.Copy(io.Discard, os.Stdin)
	_ = cmd.Wait()
	fmt.Println("reaped")
	select {} // lives on, as a real stranger does
}

// script is a shell script that ends its "read x" on release.
type script struct {
	pid     int
	f       *os.File
	release func()
}

// ours starts a child of the test.
func ours(t *testing.T, text string) script {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	t.Cleanup(func() { w.Close() })
	p, err := os.StartProcess("/bin/sh", []string{"sh", "-c", text}, &os.ProcAttr{Files: []*os.File{r, os.Stdout, os.Stderr}})
	if err != nil {
		t.Fatal(err)
	}
	pid := p.Pid
	_ = p.Release()
	return script{pid, open(t, pid), func() { w.Close() }}
}

// theirs starts a grandchild of the test. reap makes its parent collect it.
func theirs(t *testing.T, text string) (p script, reap func()) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helper+"="+text)
	cmd.ExtraFiles = []*os.File{r}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.Close()
		in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	return script{pid, open(t, pid), func() { w.Close() }}, func() {
		t.Helper()
		in.Close()
		if line, err := lines.ReadString('\n'); line != "reaped\n" {
			t.Fatalf("parent said %q, %v", line, err)
		}
	}
}

func open(t *testing.T, pid int) *os.File {
	t.Helper()
	f, err := Open(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// exited waits until the process is at least a zombie.
func exited(t *testing.T, f *os.File) {
	t.Helper()
	if err := with(f, func(fd int) error {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			n, err := unix.Poll(fds, 10_000)
			if err == unix.EINTR {
				continue
			}
			if n == 0 && err == nil {
				err = errors.New("process does not exit")
			}
			return err
		}
	}); err != nil {
		t.Fatal(err)
	}
}

func collect(t *testing.T, pid int) {
	t.Helper()
	if _, err := unix.Wait4(pid, nil, 0, nil); err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefusesAnotherStartTime(t *testing.T) {
	p := ours(t, "read x")
	start, err := StartTime(p.pid)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Open(p.pid, start)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	before := descriptors(t)
	if _, err := Open(p.pid, start+1); !errdefs.IsNotFound(err) {
		t.Errorf("another start time: got %v, want not found", err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, had %d", after, before)
	}
	p.release()
	exited(t, p.f)
	f, err = Open(p.pid, start)
	if err != nil {
		t.Errorf("zombie: %v", err)
	}
	f.Close()
	collect(t, p.pid)
	if _, err := Open(p.pid, start); !errdefs.IsNotFound(err) {
		t.Errorf("gone: got %v, want not found", err)
	}
	if _, err := StartTime(p.pid); !errdefs.IsNotFound(err) {
		t.Errorf("start time of gone: got %v, want not found", err)
	}
}

func TestStartTimeDiffersBetweenProcesses(t *testing.T) {
	self, err := StartTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	first, err := StartTime(1)
	if err != nil {
		t.Fatal(err)
	}
	if self <= first {
		t.Errorf("we started at tick %d, process 1 at %d", self, first)
	}
}

func TestSignalAndRunning(t *testing.T) {
	p := ours(t, "read x")
	if running, err := Running(p.f); err != nil || !running {
		t.Fatalf("running: %v, %v", running, err)
	}
	if err := Signal(p.f, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	exited(t, p.f)
	if running, err := Running(p.f); err != nil || running {
		t.Fatalf("zombie: running %v, %v", running, err)
	}
	if err := Signal(p.f, unix.SIGTERM); err != nil {
		t.Errorf("zombie: %v", err)
	}
	collect(t, p.pid)
	if running, err := Running(p.f); err != nil || running {
		t.Fatalf("reaped: running %v, %v", running, err)
	}
	if err := Signal(p.f, 0); !errdefs.IsNotFound(err) {
		t.Errorf("reaped: got %v, want not found", err)
	}
	p.f.Close()
	if err := Signal(p.f, 0); !errors.Is(err, os.ErrClosed) && err == nil {
		t.Errorf("closed: got %v", err)
	}
}

func TestExitInfo(t *testing.T) {
	p, reap := theirs(t, "read x; exit 9")
	if _, err := ExitInfo(p.f); !errors.Is(err, ErrStillRunning) {
		t.Skipf("this kernel has no PIDFD_INFO_EXIT: %v", err)
	}
	p.release()
	exited(t, p.f)
	if _, err := ExitInfo(p.f); !errors.Is(err, ErrStillRunning) {
		t.Errorf("zombie: got %v", err)
	}
	reap()
	ws, err := ExitInfo(p.f)
	if errors.Is(err, ErrNoExitInfo) {
		t.Skipf("this kernel has no PIDFD_INFO_EXIT: %v", err)
	}
	if err != nil || !ws.Exited() || ws.ExitStatus() != 9 {
		t.Errorf("got %v, %v", ws, err)
	}
}

func TestParseStat(t *testing.T) {
	tail := strings.Repeat(" 0", 15) // fields 53 and on may be missing or more
	line := func(comm string) string {
		f := make([]string, 50)
		for i := range f {
			f[i] = strconv.Itoa(i + 3)
		}
		f[0], f[19], f[49] = "Z", "12345", "2304"
		return "77 (" + comm + ") " + strings.Join(f, " ")
	}
	for _, tt := range []struct {
		name, in string
		ok       bool
	}{
		{"plain", line("sh"), true},
		{"blanks and parentheses", line("a) S 1 (b c)"), true},
		{"more fields", line("sh") + tail, true},
		{"empty", "", false},
		{"cut", line("sh")[:60], false},
		{"no command", "1 2 3", false},
		{"not a number", strings.Replace(line("sh"), "12345", "x", 1), false},
		{"huge exit code", strings.Replace(line("sh"), "2304", "99999999999", 1), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := parseStat([]byte(tt.in))
			if (err == nil) != tt.ok {
				t.Fatalf("got %v", err)
			}
			if tt.ok && (s.state != 'Z' || s.start != 12345 || s.exit.ExitStatus() != 9) {
				t.Errorf("got %+v", s)
			}
		})
	}
}

func FuzzParseStat(f *testing.F) {
	own, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(own)
	f.Add([]byte("1 (a) b) Z 1"))
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = parseStat(b) })
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// deadline bounds waits that end only if the code is right.
func deadline() <-chan time.Time { return time.After(20 * time.Second) }
