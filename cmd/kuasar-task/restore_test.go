package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/task"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/task/hold"
)

// wait lets a container go on: it reads a line of its stdin.
const waitLine = "read x; "

func TestWorkerDies(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sh", "-c", "echo before; "+waitLine+"echo after $x; exit 11")
	path, w := b.stdin("stdin")
	b.req.Stdin = path
	b.run()
	pid := b.state("").Pid
	execIn, execW := b.stdin("exec-stdin")
	out := b.exec("e", func(r *taskapi.ExecProcessRequest) { r.Stdin = execIn }, "sh", "-c", waitLine+"echo exec $x; exit 12")
	b.startExec("e")
	added := b.exec("later", nil, "sh", "-c", "echo later; exit 13")
	n.restart()

	if s := b.state(""); s.Status != tasktypes.Status_RUNNING || s.Pid != pid || s.Stdin != path || s.Bundle != b.bundle {
		t.Errorf("restored: %v", s)
	}
	b.startExec("later")
	if got := b.wait("later"); got != 13 || added.String() != "later\n" {
		t.Errorf("exec added before: %d, %q", got, added)
	}
	if _, err := execW.WriteString("1\n"); err != nil {
		t.Fatal(err)
	}
	if got := b.wait("e"); got != 12 || out.String() != "exec 1\n" {
		t.Errorf("exec: %d, %q", got, out)
	}
	if _, err := w.WriteString("2\n"); err != nil {
		t.Fatal(err)
	}
	if e := b.awaitExit(""); e.Exit.Status != 11 || e.Exit.Unknown != "" || e.Pid != pid {
		t.Errorf("exit: %v", e)
	}
	if got := b.out.String(); got != "before\nafter 2\n" {
		t.Errorf("output %q", got)
	}
	b.delete("")
	if left := b.leftovers(); left != "" {
		t.Errorf("left: %s", left)
	}
	if keys := n.keeper.Keys(); len(keys) != 0 {
		t.Errorf("held: %v", keys)
	}
}

func TestExitWhileNoWorkerIsThere(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sh", "-c", waitLine+"echo bye; exit 21")
	path, w := b.stdin("stdin")
	b.req.Stdin = path
	b.run()
	key := hold.Key("k8s.io", b.id, "", hold.Pidfd)
	n.kill()
	if _, err := w.WriteString("\n"); err != nil {
		t.Fatal(err)
	}
	f, err := n.keeper.Get(key)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
	if k, err := unix.Poll(fds, int(deadline.Milliseconds())); k != 1 {
		t.Fatalf("container does not exit: %v", err)
	}
	n.start()
	n.connect()
	if got := b.wait(""); got != 21 {
		t.Errorf("exit status %d", got)
	}
	if got := b.out.String(); got != "bye\n" {
		t.Errorf("output %q", got)
	}
}

func TestStoppedSurvivesWorker(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sh", "-c", "exit 31").run()
	b.awaitExit("")
	created := n.newBox("sh", "-c", "exit 32")
	created.create()
	n.restart()
	if s := b.state(""); s.Status != tasktypes.Status_STOPPED || s.ExitStatus != 31 {
		t.Errorf("restored: %v", s)
	}
	if d := b.delete(""); d.ExitStatus != 31 {
		t.Errorf("deleted: %v", d)
	}
	created.start()
	if got := created.wait(""); got != 32 {
		t.Errorf("exit status %d", got)
	}
}

func TestTerminalSurvivesWorker(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sh", "-c", "echo first; "+waitLine+"stty size; exit 41")
	path, w := b.stdin("stdin")
	b.req.Stdin, b.req.Terminal, b.spec.Process.Terminal = path, true, true
	b.run()
	n.restart()
	b.resize("", 90, 30)
	if _, err := w.WriteString("go\n"); err != nil {
		t.Fatal(err)
	}
	if e := b.awaitExit(""); e.Exit.Status != 41 {
		t.Errorf("exit: %v", e)
	}
	if got := b.out.String(); !strings.HasPrefix(got, "first\r\n") || !strings.Contains(got, "30 90\r\n") {
		t.Errorf("output %q", got)
	}
}

// TestDaemonDies has another daemon connect to the same worker.
func TestDaemonDies(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sh", "-c", waitLine+"exit 51")
	path, w := b.stdin("stdin")
	b.req.Stdin = path
	b.run()
	n.client.Close()
	n.link.Close()
	n.keeper.Close()
	n.keeper = hold.NewKeeper()
	n.connect()
	if keys := n.keeper.Keys(); len(keys) != 1 {
		t.Errorf("held: %v", keys)
	}
	n.restart()
	if _, err := w.WriteString("\n"); err != nil {
		t.Fatal(err)
	}
	if e := b.awaitExit(""); e.Exit.Status != 51 || e.Exit.Unknown != "" {
		t.Errorf("exit: %v", e)
	}
}

func TestCallsWaitForTheDaemon(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sleep", "1000").run()
	n.kill()
	n.start()
	conn, err := net.Dial("unix", filepath.Join(n.dir, "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := n.ctx()
	defer cancel()
	c, err := task.NewClient(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	listed := make(chan int)
	go func() {
		r, err := c.List(ctx, &api.ListRequest{})
		if err != nil {
			t.Error(err)
		}
		listed <- len(r.GetProcesses())
	}()
	select {
	case <-listed:
		t.Error("answered before it was restored")
	default:
	}
	n.connect()
	if got := <-listed; got != 1 {
		t.Errorf("%d processes", got)
	}
	b.kill(9)
}

func TestDamagedRecordIsLeftAlone(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sleep", "1000").run()
	other := n.newBox("sleep", "1000").run()
	pid := b.state("").Pid
	record := filepath.Join(n.dir, "containers", "k8s.io", b.id, "task.json")
	good, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	n.kill()
	for _, bad := range []string{"", "{", `{"version":99,"boot":"x","data":{}}`} {
		if err := os.WriteFile(record, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		n.start()
		n.connect()
		ctx, cancel := n.ctx()
		defer cancel()
		if _, err := n.client.State(ctx, &taskapi.StateRequest{ID: b.id}); !errdefs.IsUnavailable(errgrpc.ToNative(err)) {
			t.Errorf("state with record %q: %v", bad, err)
		}
		if err := unix.Kill(int(pid), 0); err != nil {
			t.Errorf("with record %q the container is gone: %v", bad, err)
		}
		if s := other.state(""); s.Status != tasktypes.Status_RUNNING {
			t.Errorf("with record %q the other is %v", bad, s.Status)
		}
		if _, err := b.tryCreate(); !errdefs.IsAlreadyExists(errgrpc.ToNative(err)) || !strings.Contains(err.Error(), "move it away") {
			t.Errorf("create again with record %q: %v", bad, err)
		}
		n.kill()
	}
	if err := os.WriteFile(record, good, 0o600); err != nil {
		t.Fatal(err)
	}
	n.start()
	n.connect()
	if s := b.state(""); s.Status != tasktypes.Status_RUNNING {
		t.Errorf("with its record it is %v", s.Status)
	}
}

// failpoints of the binary.
func failpoints(t *testing.T) []string {
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, "failpoints").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))
}

// TestFailpoints kills the worker at every point of a container's life, has the
// next worker go on, and finds nothing lost and nothing left.
func TestFailpoints(t *testing.T) {
	for _, point := range failpoints(t) {
		t.Run(point, func(t *testing.T) {
			n := newNode(t)
			l := &life{}
			if strings.HasPrefix(point, "wasm/") {
				l.box = n.newModule("talk", "61")
				l.give(filepath.Join(n.dir, "modules")) // it is compiled, too
				l.exits = func(code string) []string { return []string{"/probe.wasm", "exit", code} }
			} else {
				l.box = n.newBox("sh", "-c", "echo one; "+waitLine+"echo two; exit 61")
				l.exits = func(code string) []string { return []string{"sh", "-c", "exit " + code} }
			}
			l.req.Stdin, l.stdin = l.box.stdin("stdin")
			n.kill()
			n.env = []string{"KUASAR_FAILPOINT=" + point}
			n.start()
			n.env = nil
			n.connect()
			if !l.live(point) {
				t.Fatalf("the worker did not die")
			}
		})
	}
}

// life goes through everything that has a failpoint, and starts the next
// worker when one died.
type life struct {
	*box
	stdin *os.File
	exits func(code string) []string // a command that exits with code
	died  bool
}

// call makes a call again with the next worker if its own died.
func (l *life) call(what string, again func() bool, do func() error) {
	l.Helper()
	err := do()
	if err == nil {
		return
	}
	if l.died {
		l.Fatalf("%s after a restart: %v", what, err)
	}
	l.gone()
	l.died = true
	l.node.start()
	l.connect()
	if again() {
		if err := do(); err != nil {
			l.Fatalf("%s again: %v", what, err)
		}
	}
}

func always() bool { return true }

// is says whether a process has that status.
func (l *life) is(exec string, want tasktypes.Status) bool {
	ctx, cancel := l.ctx()
	defer cancel()
	s, err := l.client.State(ctx, &taskapi.StateRequest{ID: l.id, ExecID: exec})
	return err == nil && s.Status == want
}

func (l *life) live(point string) bool {
	l.Helper()
	ctx, cancel := l.ctx()
	defer cancel()
	l.call("create", func() bool {
		if l.is("", tasktypes.Status_CREATED) {
			return false
		}
		// The container that was undone had the output.
		l.out = l.read(filepath.Join(l.bundle, "stdout2"))
		l.req.Stdout = l.out.path
		return true
	}, func() error { _, err := l.tryCreate(); return err })
	l.call("start", func() bool { return !l.is("", tasktypes.Status_RUNNING) }, func() error {
		_, err := l.client.Start(ctx, &taskapi.StartRequest{ID: l.id})
		return err
	})
	if !l.out.began() {
		// Killed in the instant in which the first process told that it goes
		// on: it cannot tell a new worker, so it ends. The client's start
		// failed as well.
		if e := l.awaitExit(""); e.Exit.Status == 61 || !strings.HasPrefix(point, "container/start/") {
			l.Errorf("it did not start: %v", e)
		}
		l.delete("")
		return l.died
	}
	l.execs()
	l.call("pause", func() bool { return !l.is("", tasktypes.Status_PAUSED) }, func() error {
		_, err := l.client.Pause(ctx, &taskapi.PauseRequest{ID: l.id})
		return err
	})
	l.call("resume", func() bool { return !l.is("", tasktypes.Status_RUNNING) }, func() error {
		_, err := l.client.Resume(ctx, &taskapi.ResumeRequest{ID: l.id})
		return err
	})
	if _, err := l.stdin.WriteString("go\n"); err != nil {
		l.Fatal(err)
	}
	l.call("close stdin", always, func() error {
		_, err := l.client.CloseIO(ctx, &taskapi.CloseIORequest{ID: l.id, Stdin: true})
		return err
	})
	l.call("wait", always, func() error {
		r, err := l.client.Wait(ctx, &taskapi.WaitRequest{ID: l.id})
		if err == nil && r.ExitStatus != 61 {
			l.Errorf("exit status %d", r.ExitStatus)
		}
		return err
	})
	if got := l.out.String(); got != "one\ntwo\n" {
		l.Errorf("output %q", got)
	}
	l.call("delete", func() bool { return l.is("", tasktypes.Status_STOPPED) }, func() error {
		_, err := l.client.Delete(ctx, &taskapi.DeleteRequest{ID: l.id})
		return err
	})
	if left := l.leftovers(); left != "" {
		l.Errorf("left: %s", left)
	}
	if keys := l.keeper.Keys(); len(keys) != 0 {
		l.Errorf("held: %v", keys)
	}
	return l.died
}

// execs runs one exec whose worker may die, and then another.
func (l *life) execs() {
	l.Helper()
	ctx, cancel := l.ctx()
	defer cancel()
	if _, err := l.client.Exec(ctx, &taskapi.ExecProcessRequest{ID: l.id, ExecID: "e", Spec: l.processSpec(l.exits("62")...)}); err != nil {
		l.call("exec", func() bool { return false }, func() error { return err })
	} else if _, err := l.client.Start(ctx, &taskapi.StartRequest{ID: l.id, ExecID: "e"}); err != nil {
		l.call("start exec", func() bool { return false }, func() error { return err })
	} else {
		l.call("wait for exec", always, func() error {
			r, err := l.client.Wait(ctx, &taskapi.WaitRequest{ID: l.id, ExecID: "e"})
			if err == nil && r.ExitStatus != 62 {
				l.Errorf("exec's exit status %d", r.ExitStatus)
			}
			return err
		})
	}
	l.exec("second", nil, l.exits("63")...)
	l.startExec("second")
	if got := l.wait("second"); got != 63 {
		l.Errorf("second exec's exit status %d", got)
	}
}
