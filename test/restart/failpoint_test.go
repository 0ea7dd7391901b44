package restart

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	_ "github.com/containerd-kuasar/containerd-kuasar/plugins" // its failpoints
	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// TestKilledAtFailpoint kills the daemon, or the worker, at each point of its
// code that stands beside an outside effect. Another pod must not notice, what
// was under way must be removable, and nothing may be left behind. All points
// have one bed: what one of them breaks, the next would stand on.
func TestKilledAtFailpoint(t *testing.T) {
	n := newNode(t)
	before, err := n.Leaks(n.ctx)
	n.must(err)
	try := func(name string, v victim) {
		ok := t.Run(v.String()+"/"+name, func(t *testing.T) {
			n := *n
			n.t = t
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			defer cancel()
			n.ctx = ctx
			n.killAt(name, v)
			after, err := n.Leaks(ctx)
			n.must(err)
			if left := slices.DeleteFunc(after, func(s string) bool { return slices.Contains(before, s) }); len(left) > 0 {
				t.Errorf("leaks:\n%s", strings.Join(left, "\n"))
			}
		})
		if !ok {
			t.FailNow()
		}
	}
	for _, name := range failpoint.Names() {
		if !absent(name) {
			try(name, daemon)
		}
	}
	for _, name := range workerFailpoints(t) {
		try(name, worker)
	}
}

// absent tells whether a failpoint that the daemon has is on no path of these
// pods: its end of hold has none, and TestVMKilledAtFailpoint is for virtual
// machines.
func absent(name string) bool {
	of, _, _ := strings.Cut(name, "/")
	return of == "hold" || of == "vmm" || of == "network"
}

func workerFailpoints(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("../../bin/kuasar-task", "failpoints").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))
}

// victim is a process that is killed.
type victim int

const (
	daemon victim = iota
	worker
)

func (v victim) String() string {
	if v == daemon {
		return "daemon"
	}
	return "worker"
}

func (n *node) killAt(name string, v victim) {
	n.t.Helper()
	other := n.bystander()

	// The daemon dies while it starts a worker: what ends without either, and
	// what is on its way to a log, may be lost then.
	both := v == daemon && strings.HasPrefix(name, "worker/")

	n.must(n.Kill())
	if strings.HasPrefix(name, "wasm/cache/") { // nothing is compiled but once
		n.must(os.RemoveAll(filepath.Join(n.Dir, "r/kuasar/wasm-cache")))
	}
	n.SetEnviron(failpoint.Env + "=" + name)
	mark := n.Mark()
	// A point of the recovery kills the daemon while it starts.
	if err := n.Start(n.ctx); err == nil {
		if v == worker || both {
			n.killWorker() // the next one inherits the daemon's environment
		}
		// The daemon starts the next one unasked. It may die of that while the
		// CRI plugin makes a pod, which leaves the pod's network namespace
		// behind if it has no record of that yet: so there is no other pod then.
		if !both {
			while, stop := n.whileAlive()
			while.lifecycle()
			stop()
		}
	}
	if !n.died(v, mark) {
		n.t.Errorf("it did not die at %s: is it on no path?", name)
	}

	n.SetEnviron()
	n.must(n.Kill())
	if !both {
		other.leave()
	}
	n.must(n.Start(n.ctx))
	other.runs()
	if !both {
		other.left()
	}
	n.removeOthers(other.pod)
	// A node that can do all of it again has lost nothing.
	if err := n.lifecycle(); err != nil {
		n.t.Errorf("afterwards: %v", err)
	}
	if !both {
		other.end()
	}
	n.must(n.remove(other.pod.id))
}

// kind is a sandboxer with a container that runs for long.
type kind struct {
	handler string
	run     containerOption
	exec    []string
}

var kinds = []kind{
	{bed.Runc, func(*runtime.ContainerConfig) {}, []string{"true"}},
	{bed.Wasm, module("sleep"), []string{"/probe.wasm", "args"}},
}

// lifecycle does everything that has outside effects, to its end or to the
// first error, with each kind of pod.
func (n *node) lifecycle() error {
	for _, k := range kinds {
		if err := n.cycle(k); err != nil {
			return err
		}
	}
	return nil
}

// cycle is a pod's that shares its processes: it has what others have, and an
// init where there is one.
func (n *node) cycle(k kind) error {
	config := n.podConfig()
	config.Linux.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_POD}
	p, err := n.runPodOf(k.handler, config)
	if err != nil {
		return err
	}
	id, err := n.createContainer(p, "c", "sleep 1000", k.run)
	if err != nil {
		return err
	}
	if err := n.startContainer(id); err != nil {
		return err
	}
	if _, err := n.Runtime.ExecSync(n.ctx, &runtime.ExecSyncRequest{ContainerId: id, Cmd: k.exec}); err != nil {
		return err
	}
	if err := n.control(id); err != nil {
		return err
	}
	if _, err := n.Runtime.StopContainer(n.ctx, &runtime.StopContainerRequest{ContainerId: id}); err != nil {
		return err
	}
	if _, err := n.Runtime.RemoveContainer(n.ctx, &runtime.RemoveContainerRequest{ContainerId: id}); err != nil {
		return err
	}
	return n.remove(p.id)
}

// control does what CRI does not.
func (n *node) control(id string) error {
	ctx := namespaces.WithNamespace(n.ctx, bed.Namespace)
	task, err := n.task(ctx, id)
	if err != nil {
		return err
	}
	shares := &runtime.LinuxContainerResources{CpuShares: 512}
	if _, err := n.Runtime.UpdateContainerResources(n.ctx, &runtime.UpdateContainerResourcesRequest{ContainerId: id, Linux: shares}); err != nil {
		return err
	}
	if err := task.Pause(ctx); err != nil {
		return err
	}
	if err := task.Resume(ctx); err != nil {
		return err
	}
	return task.CloseIO(ctx, containerd.WithStdinCloser)
}

func (n *node) task(ctx context.Context, id string) (containerd.Task, error) {
	client, err := n.Client()
	if err != nil {
		return nil, err
	}
	container, err := client.LoadContainer(ctx, id)
	if err != nil {
		return nil, err
	}
	return container.Task(ctx, nil)
}

func (n *node) remove(pod string) error {
	if _, err := n.Runtime.StopPodSandbox(n.ctx, &runtime.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		return err
	}
	_, err := n.Runtime.RemovePodSandbox(n.ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: pod})
	return err
}

// removeOthers removes every pod but one, as a kubelet would after it lost track.
func (n *node) removeOthers(keep *pod) {
	n.t.Helper()
	list, err := n.Runtime.ListPodSandbox(n.ctx, &runtime.ListPodSandboxRequest{})
	n.must(err)
	for _, p := range list.Items {
		if p.Id != keep.id {
			n.must(n.remove(p.Id))
		}
	}
}

// deathTime is how long after an error the death that was its cause may go
// unnoticed.
const deathTime = 3 * time.Second

// whileAlive is a node whose calls end with the present daemon: others wait for
// the next one.
func (n *node) whileAlive() (*node, context.CancelFunc) {
	ctx, cancel := context.WithCancel(n.ctx)
	exited := n.Exited()
	go func() {
		select {
		case <-exited:
			cancel()
		case <-ctx.Done():
		}
	}()
	return &node{Bed: n.Bed, t: n.t, ctx: ctx, handler: n.handler}, cancel
}

// died says whether a failpoint has killed a process since.
func (n *node) died(v victim, since bed.Mark) bool {
	ctx, cancel := context.WithTimeout(n.ctx, deathTime)
	defer cancel()
	if v == daemon {
		select {
		case <-n.Exited():
			return true
		case <-ctx.Done():
			return false
		}
	}
	_, err := n.AwaitNth(ctx, since, "worker died", 2) // the first was killWorker
	return err == nil
}
