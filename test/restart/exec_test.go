package restart

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// execution is an exec of a client that is not CRI.
type execution struct {
	id      string
	process containerd.Process
	out     *bytes.Buffer
}

// execute starts a script in a container, as ctr does.
func (n *node) execute(ctx context.Context, container, id, script string) *execution {
	n.t.Helper()
	task, err := n.task(ctx, container)
	n.must(err)
	e := &execution{id: id, out: &bytes.Buffer{}}
	e.process, err = task.Exec(ctx, id, &specs.Process{Args: []string{"sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"}},
		cio.NewCreator(cio.WithFIFODir(n.t.TempDir()), cio.WithStreams(strings.NewReader(""), e.out, nil)))
	n.must(err)
	n.must(e.process.Start(ctx))
	return e
}

// ended waits with a new daemon for an exec of an old one, and returns how it
// ended and what it wrote.
func (n *node) ended(ctx context.Context, container string, e *execution) (code uint32, out string) {
	n.t.Helper()
	task, err := n.task(ctx, container)
	n.must(err)
	e.process.IO().Wait() // the former daemon's end was the only one
	p, err := task.LoadProcess(ctx, e.id, cio.NewAttach(cio.WithStreams(nil, e.out, nil)))
	n.must(err)
	exit, err := p.Wait(ctx)
	n.must(err)
	status := <-exit
	n.must(status.Error())
	p.IO().Wait()
	_, err = p.Delete(ctx)
	n.must(err)
	return status.ExitCode(), e.out.String()
}

// TestVMExec kills the daemon while execs run, one of which ends meanwhile.
func TestVMExec(t *testing.T) {
	const lines = 2000
	n := newVMNode(t)
	ctx := namespaces.WithNamespace(n.ctx, bed.Namespace)
	early, mount := n.door("early")
	late, mountLate := n.door("late")
	mountLate = at("/late", mountLate)
	_, id := n.run("sleep 1000", mount, mountLate)
	script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line $i of a container that writes a lot; i=$((i+1)); done", lines)
	one := n.execute(ctx, id, "one", through(script)+"; exit 11")
	two := n.execute(ctx, id, "two", strings.ReplaceAll(through(script)+"; exit 12", "/door", "/late"))
	n.restart(early.open) // its output waits in the guest: nobody passes it on
	late.open()
	for code, e := range map[uint32]*execution{11: one, 12: two} {
		got, out := n.ended(ctx, id, e)
		if got != code {
			t.Errorf("exec %s ended with %d, want %d", e.id, got, code)
		}
		compare(t, out, want(lines))
	}
	if got := n.exec(id, "echo again"); got != "again\n" {
		t.Errorf("an exec after that says %q", got)
	}
}

// TestExec kills the daemon, and the worker, while execs run, one of which ends
// meanwhile. A process of the host has its client's FIFO itself.
func TestExec(t *testing.T) {
	const lines = 2000
	n := newNode(t)
	ctx := namespaces.WithNamespace(n.ctx, bed.Namespace)
	early, mount := n.door("early")
	late, mountLate := n.door("late")
	_, id := n.run("sleep 1000", mount, at("/late", mountLate))
	script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line $i of a container that writes a lot; i=$((i+1)); done", lines)
	one := n.execute(ctx, id, "one", through(script)+"; exit 11")
	two := n.execute(ctx, id, "two", strings.ReplaceAll(through(script)+"; exit 12", "/door", "/late"))
	n.restart(early.open)
	n.killWorker()
	late.open()
	for code, e := range map[uint32]*execution{11: one, 12: two} {
		task, err := n.task(ctx, id)
		n.must(err)
		p, err := task.LoadProcess(ctx, e.id, nil)
		n.must(err)
		exit, err := p.Wait(ctx)
		n.must(err)
		status := <-exit
		n.must(status.Error())
		if got := status.ExitCode(); got != code {
			t.Errorf("exec %s ended with %d, want %d", e.id, got, code)
		}
		e.process.IO().Wait()
		compare(t, e.out.String(), want(lines))
		_, err = p.Delete(ctx)
		n.must(err)
	}
	if got := n.exec(id, "echo again"); got != "again\n" {
		t.Errorf("an exec after that says %q", got)
	}
}
