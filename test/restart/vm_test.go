package restart

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// newVMNode is a node whose pods are virtual machines.
func newVMNode(t testing.TB) *node {
	t.Helper()
	return newVMNodeOf(t, bed.Options{})
}

func newVMNodeOf(t testing.TB, options bed.Options) *node {
	t.Helper()
	bed.RequireVMM(t)
	n := newNodeOf(t, options)
	n.handler = bed.VMM
	ctx, cancel := context.WithTimeout(context.Background(), vmDeadline)
	t.Cleanup(cancel)
	n.ctx = ctx
	return n
}

// vmDeadline bounds the calls of a test with virtual machines, which may be
// emulated.
const vmDeadline = 6 * time.Minute

// door is a gate for a container in a guest: its kernel has no part in FIFOs of
// the host's, so that files stand for them.
type door struct {
	n   *node
	dir string
}

func (n *node) door(name string) (door, containerOption) {
	n.t.Helper()
	d := door{n, filepath.Join(n.Dir, "doors", name)}
	n.must(os.MkdirAll(d.dir, 0o755))
	return d, func(c *runtime.ContainerConfig) {
		c.Mounts = append(c.Mounts, &runtime.Mount{HostPath: d.dir, ContainerPath: "/door"})
	}
}

// at has a door at another place in the container.
func at(path string, mount containerOption) containerOption {
	return func(c *runtime.ContainerConfig) {
		mount(c)
		c.Mounts[len(c.Mounts)-1].ContainerPath = path
	}
}

// through waits until the door is opened, and says that it went through when all
// that follows has come to its end.
func through(script string) string {
	return "while [ ! -e /door/open ]; do sleep 0.05; done; " + script + "; touch /door/through"
}

func (d door) open() {
	d.n.t.Helper()
	d.n.must(os.WriteFile(filepath.Join(d.dir, "open"), nil, 0o644))
}

// pass opens the door and returns when the container has gone through.
func (d door) pass() {
	d.n.t.Helper()
	d.open()
	d.n.must(awaitFile(d.n.ctx, filepath.Join(d.dir, "through")))
}

// both writes n numbered lines on stdout and as many on stderr.
func both(n int) string {
	return fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo out $i; echo err $i >&2; i=$((i+1)); done", n)
}

// wrote holds that a log has both(lines), every line once.
func (n *node) wrote(p *pod, name string, lines int) {
	n.t.Helper()
	raw, err := os.ReadFile(n.logPath(p, name))
	n.must(err)
	for stream, word := range map[string]string{"stdout": "out", "stderr": "err"} {
		got, err := bed.ParseLog(string(raw), stream)
		n.must(err)
		var want strings.Builder
		for i := range lines {
			fmt.Fprintf(&want, "%s %d\n", word, i)
		}
		compare(n.t, got, want.String())
	}
}

// view is what CRI's clients see of everything.
type view struct {
	pods       *runtime.ListPodSandboxResponse
	containers *runtime.ListContainersResponse
	statuses   []proto.Message
}

func (n *node) view() view {
	n.t.Helper()
	var v view
	var err error
	v.pods, err = n.Runtime.ListPodSandbox(n.ctx, &runtime.ListPodSandboxRequest{})
	n.must(err)
	v.containers, err = n.Runtime.ListContainers(n.ctx, &runtime.ListContainersRequest{})
	n.must(err)
	for _, p := range v.pods.Items {
		s, err := n.Runtime.PodSandboxStatus(n.ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: p.Id})
		n.must(err)
		v.statuses = append(v.statuses, s.Status)
	}
	for _, c := range v.containers.Containers {
		v.statuses = append(v.statuses, n.status(c.Id))
	}
	return v
}

// same holds that nothing has changed.
func (v view) same(t testing.TB, after view) {
	t.Helper()
	before := append([]proto.Message{v.pods, v.containers}, v.statuses...)
	now := append([]proto.Message{after.pods, after.containers}, after.statuses...)
	if len(before) != len(now) {
		t.Fatalf("%d answers before, %d after", len(before), len(now))
	}
	for i := range before {
		if !proto.Equal(before[i], now[i]) {
			t.Errorf("before:\n%v\nafter:\n%v", before[i], now[i])
		}
	}
}

// machine returns the processes of a pod's machine, by name.
func (n *node) machine(p *pod) map[string]int {
	n.t.Helper()
	m, err := n.Machine(p.id)
	n.must(err)
	return m
}

// TestVMRunsOn kills the daemon, and ends it, beside a pod that is the same
// after it.
func TestVMRunsOn(t *testing.T) {
	n := newVMNode(t)
	p, id := n.run("sleep 1000")
	before, machine := n.view(), n.machine(p)
	process := n.exec(id, startTime)
	if len(machine) != 3 {
		t.Errorf("the machine's processes are %v", machine)
	}
	for name, end := range map[string]func() error{"killed": n.Kill, "ended": func() error { return n.Stop(n.ctx) }} {
		n.must(end())
		n.must(n.Start(n.ctx))
		before.same(t, n.view())
		if now := n.machine(p); fmt.Sprint(now) != fmt.Sprint(machine) {
			t.Errorf("%s: the machine's processes were %v and are %v", name, machine, now)
		}
		if got := n.exec(id, startTime); got != process {
			t.Errorf("%s: the container's process started at %q, now %q", name, process, got)
		}
		s, err := n.Runtime.ContainerStats(n.ctx, &runtime.ContainerStatsRequest{ContainerId: id})
		if err != nil || s.Stats.Memory.WorkingSetBytes.GetValue() == 0 || s.Stats.Cpu.UsageCoreNanoSeconds.GetValue() == 0 {
			t.Errorf("%s: stats %v, %v", name, s, err)
		}
		ps, err := n.Runtime.PodSandboxStats(n.ctx, &runtime.PodSandboxStatsRequest{PodSandboxId: p.id})
		if err != nil || ps.Stats.Linux.Memory.GetUsageBytes().GetValue()+ps.Stats.Linux.Memory.GetWorkingSetBytes().GetValue() == 0 {
			t.Errorf("%s: pod stats %v, %v", name, ps, err)
		}
	}
	// An old pod takes new containers.
	_, err := n.createContainer(p, "late", "sleep 1000")
	n.must(err)
}

// TestVMOutput kills the daemon again and again while a container writes.
func TestVMOutput(t *testing.T) {
	const lines = 10_000
	n := newVMNode(t)
	p, id := n.run(both(lines) + "; exit 6")
	for range 4 {
		n.restart(nil)
	}
	if s := n.awaitExit(id); s.ExitCode != 6 {
		t.Errorf("exit code %d (%s %s)", s.ExitCode, s.Reason, s.Message)
	}
	n.wrote(p, "c", lines)
}

// TestVMExitsWithoutDaemon has containers exit while there is no daemon, and
// while one starts.
func TestVMExitsWithoutDaemon(t *testing.T) {
	const lines = 300
	n := newVMNode(t)
	p, err := n.runPod(n.podConfig())
	n.must(err)
	type container struct {
		id, name string
		code     int32
		door     door
	}
	var all []container
	for i := range 4 { // the first has exited before there is a daemon, the others while it starts
		name := fmt.Sprint("c", i)
		d, mount := n.door(name)
		id, err := n.createContainer(p, name, through(fmt.Sprintf("sleep %d.%d; %s", i/2, i%2*5, both(lines)))+fmt.Sprintf("; exit %d", 40+i), mount)
		n.must(err)
		n.must(n.startContainer(id))
		all = append(all, container{id, name, int32(40 + i), d})
	}
	var opened time.Time
	n.restart(func() {
		opened = time.Now()
		for _, c := range all[1:] {
			c.door.open()
		}
		all[0].door.pass()
	})
	for _, c := range all {
		s := n.awaitExit(c.id)
		if s.ExitCode != c.code {
			t.Errorf("%s: exit code %d (%s %s), want %d", c.name, s.ExitCode, s.Reason, s.Message, c.code)
		}
		// The guest's clock is set once, when it boots.
		if at := time.Unix(0, s.FinishedAt); at.Before(opened.Add(-time.Second)) || at.After(time.Now().Add(time.Second)) {
			t.Errorf("%s: finished at %v, and was let go at %v", c.name, at, opened)
		}
		n.wrote(p, c.name, lines)
	}
}

// TestVMTerminal has one over the death of the daemon.
func TestVMTerminal(t *testing.T) {
	n := newVMNode(t)
	d, mount := n.door("tty")
	p, id := n.run("test -t 0 && echo terminal; "+through("echo still here")+"; exit 3", mount, withTTY)
	n.restart(nil)
	d.open()
	if s := n.awaitExit(id); s.ExitCode != 3 {
		t.Errorf("exit code %d", s.ExitCode)
	}
	if got := strings.ReplaceAll(n.output(p, "c"), "\r", ""); got != "terminal\nstill here\n" {
		t.Errorf("log %q", got)
	}
}

// awaitFile returns when there is one at path.
func awaitFile(ctx context.Context, path string) error { return awaitText(ctx, path, "") }

// awaitText returns when there is a file at path that has a text.
func awaitText(ctx context.Context, path, text string) error {
	changed, stop, err := watch(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer stop()
	for {
		b, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(b), text) || err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for %q in %s: %w", text, path, ctx.Err())
		}
	}
}
