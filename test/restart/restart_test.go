// Package restart proves that pods survive whatever dies beside them.
package restart

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// gate is a FIFO in a pod's volume that a container waits at.
type gate struct{ path string }

func (n *node) gate(name string) (gate, containerOption) {
	n.t.Helper()
	dir := filepath.Join(n.Dir, "gates", name)
	n.must(os.MkdirAll(dir, 0o755))
	g := gate{filepath.Join(dir, "gate")}
	n.must(unix.Mkfifo(g.path, 0o666))
	return g, func(c *runtime.ContainerConfig) {
		c.Mounts = append(c.Mounts, &runtime.Mount{HostPath: dir, ContainerPath: "/gate"})
	}
}

// open lets the container pass; it blocks until it is there.
func (g gate) open(t testing.TB) {
	t.Helper()
	if err := os.WriteFile(g.path, []byte("\n"), 0); err != nil {
		t.Fatal(err)
	}
}

const pass = "read x < /gate/gate"

func TestContainerRunsOnWithoutDaemon(t *testing.T) {
	n := newNode(t)
	_, id := n.run("sleep 1000")
	before := n.status(id)
	pid := n.exec(id, "echo $PPID; cat /proc/1/stat | cut -d' ' -f22")
	n.restart(nil)
	after := n.status(id)
	if !proto.Equal(before, after) {
		t.Errorf("status before:\n%v\nafter:\n%v", before, after)
	}
	if got := n.exec(id, "echo $PPID; cat /proc/1/stat | cut -d' ' -f22"); got != pid {
		t.Errorf("the container's first process started at %q, now %q", pid, got)
	}
	if s, err := n.Runtime.ContainerStats(n.ctx, &runtime.ContainerStatsRequest{ContainerId: id}); err != nil || s.Stats.Memory.WorkingSetBytes.GetValue() == 0 {
		t.Errorf("stats %v, %v", s, err)
	}
}

func TestViewOfPodsIsTheSame(t *testing.T) {
	n := newNode(t)
	view := func() (*runtime.ListPodSandboxResponse, *runtime.ListContainersResponse, []*runtime.PodSandboxStatus) {
		pods, err := n.Runtime.ListPodSandbox(n.ctx, &runtime.ListPodSandboxRequest{})
		n.must(err)
		containers, err := n.Runtime.ListContainers(n.ctx, &runtime.ListContainersRequest{})
		n.must(err)
		var statuses []*runtime.PodSandboxStatus
		for _, p := range pods.Items {
			s, err := n.Runtime.PodSandboxStatus(n.ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: p.Id})
			n.must(err)
			statuses = append(statuses, s.Status)
		}
		return pods, containers, statuses
	}
	p, _ := n.run("sleep 1000")
	pods, containers, statuses := view()
	n.restart(nil)
	pods2, containers2, statuses2 := view()
	if !proto.Equal(pods, pods2) {
		t.Errorf("pods before:\n%v\nafter:\n%v", pods, pods2)
	}
	if !proto.Equal(containers, containers2) {
		t.Errorf("containers before:\n%v\nafter:\n%v", containers, containers2)
	}
	for i := range statuses {
		if !proto.Equal(statuses[i], statuses2[i]) {
			t.Errorf("pod status before:\n%v\nafter:\n%v", statuses[i], statuses2[i])
		}
	}
	if again, err := n.runPod(p.config); err == nil {
		t.Errorf("a second pod of the same name was started: %s", again.id)
	}
	// A new container of an old pod still gets its files and namespaces.
	id, err := n.createContainer(p, "late", "sleep 1000")
	n.must(err)
	n.must(n.startContainer(id))
	if got := n.exec(id, "hostname; grep -c . /etc/hosts >/dev/null && test -s /etc/resolv.conf && df -P /dev/shm | tail -1 | cut -d' ' -f1"); !strings.HasPrefix(got, "restart\n") {
		t.Errorf("a container started after the restart sees %q", got)
	}
}

func TestExitWithoutDaemon(t *testing.T) {
	n := newNode(t)
	g, mount := n.gate("exit")
	p, id := n.run("echo before; "+pass+"; echo after; exit 42", mount)
	var opened time.Time
	n.restart(func() {
		opened = time.Now()
		g.open(t)
		n.must(n.awaitGone(n.ctx, id))
	})
	back := time.Now()
	s := n.awaitExit(id)
	if s.ExitCode != 42 {
		t.Errorf("exit code %d (%s %s), want 42", s.ExitCode, s.Reason, s.Message)
	}
	if at := time.Unix(0, s.FinishedAt); at.Before(opened) || at.After(back) {
		t.Errorf("finished at %v, want between %v and %v", at, opened, back)
	}
	if got := n.output(p, "c"); got != "before\nafter\n" {
		t.Errorf("log %q", got)
	}
}

// numbered writes n numbered lines, then passes on.
func numbered(n int) string {
	return fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line $i of a container that writes a lot; i=$((i+1)); done", n)
}

func want(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "line %d of a container that writes a lot\n", i)
	}
	return b.String()
}

func TestNoByteOfOutputIsLost(t *testing.T) {
	const lines = 400_000
	n := newNode(t)
	p, id := n.run(numbered(lines))
	for range 5 {
		n.restart(nil)
	}
	if s := n.awaitExit(id); s.ExitCode != 0 {
		t.Fatalf("exit code %d", s.ExitCode)
	}
	compare(t, n.output(p, "c"), want(lines))
}

func TestOutputWithoutDaemon(t *testing.T) {
	n := newNode(t)
	g, mount := n.gate("output")
	p, id := n.run(pass+"; "+numbered(500), mount)
	n.restart(func() {
		g.open(t)
		n.must(n.awaitGone(n.ctx, id))
	})
	n.awaitExit(id)
	compare(t, n.output(p, "c"), want(500))
}

func compare(t testing.TB, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	gotLines, wantLines := strings.SplitAfter(got, "\n"), strings.SplitAfter(want, "\n")
	for i := range min(len(gotLines), len(wantLines)) {
		if gotLines[i] != wantLines[i] {
			t.Fatalf("line %d of the log is %q, want %q (%d lines, want %d)", i, gotLines[i], wantLines[i], len(gotLines), len(wantLines))
		}
	}
	t.Fatalf("the log has %d lines, want %d", len(gotLines), len(wantLines))
}

func TestTerminalSurvivesDaemon(t *testing.T) {
	n := newNode(t)
	g, mount := n.gate("tty")
	p, id := n.run("test -t 0 && echo terminal; "+pass+"; echo still here; exit 3", mount, withTTY)
	n.restart(nil)
	g.open(t)
	if s := n.awaitExit(id); s.ExitCode != 3 {
		t.Errorf("exit code %d", s.ExitCode)
	}
	if got := strings.ReplaceAll(n.output(p, "c"), "\r", ""); got != "terminal\nstill here\n" {
		t.Errorf("log %q", got)
	}
}

func TestWorkerKilled(t *testing.T) {
	for _, c := range []struct {
		name   string
		option containerOption
	}{
		{"pipes", func(*runtime.ContainerConfig) {}},
		{"terminal", withTTY},
		{"stdin", withStdin},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			g, mount := n.gate(c.name)
			p, id := n.run("echo before; "+pass+"; echo after; exit 7", mount, c.option)
			n.killWorker()
			if got := n.exec(id, "echo exec works"); got != "exec works\n" {
				t.Errorf("exec says %q", got)
			}
			g.open(t)
			if s := n.awaitExit(id); s.ExitCode != 7 {
				t.Errorf("exit code %d (%s %s), want 7", s.ExitCode, s.Reason, s.Message)
			}
			if got := strings.ReplaceAll(n.output(p, "c"), "\r", ""); got != "before\nafter\n" {
				t.Errorf("log %q", got)
			}
		})
	}
}

// The container exits while no worker is there to be its parent.
func TestExitWithoutWorker(t *testing.T) {
	n := newNode(t)
	g, mount := n.gate("worker")
	_, id := n.run(pass+"; exit 9", mount)
	n.killWorker()
	g.open(t)
	if s := n.awaitExit(id); s.ExitCode != 9 {
		t.Errorf("exit code %d (%s %s), want 9", s.ExitCode, s.Reason, s.Message)
	}
}

func TestDaemonAndWorkerKilled(t *testing.T) {
	n := newNode(t)
	g, mount := n.gate("both")
	_, id := n.run("echo before; "+pass+"; echo after; exit 5", mount)
	n.restart(n.killWorker)
	if got := n.exec(id, "echo exec works"); got != "exec works\n" {
		t.Errorf("exec says %q", got)
	}
	g.open(t)
	if s := n.awaitExit(id); s.ExitCode != 5 {
		t.Errorf("exit code %d (%s %s), want 5", s.ExitCode, s.Reason, s.Message)
	}
}

// killWorker kills the worker and returns when it is gone.
func (n *node) killWorker() {
	n.t.Helper()
	pid, err := n.Worker()
	n.must(err)
	fd, err := unix.PidfdOpen(pid, 0)
	n.must(err)
	defer unix.Close(fd)
	n.must(unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0))
	n.must(awaitPidfd(n.ctx, fd))
}

// awaitGone blocks until no process has a container's id in its cgroup.
func (n *node) awaitGone(ctx context.Context, id string) error {
	pids, err := processes(id)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // gone
		}
		err = awaitPidfd(ctx, fd)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("await process %d of container %s: %w", pid, id, err)
		}
	}
	return nil
}

// processes lists the processes in a container's cgroup.
func processes(id string) ([]int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(b), id) {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(file, "/proc/%d/cgroup", &pid); err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

func awaitPidfd(ctx context.Context, fd int) error {
	timeout := -1
	if d, ok := ctx.Deadline(); ok {
		timeout = int(time.Until(d).Milliseconds())
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, timeout)
	for err == unix.EINTR {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, timeout)
	}
	if err == nil && n == 0 {
		err = context.DeadlineExceeded
	}
	return err
}
