package restart

import (
	"context"
	"os/exec"
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
// was under way must be removable, and nothing may be left behind.
func TestKilledAtFailpoint(t *testing.T) {
	for _, name := range failpoint.Names() {
		t.Run("daemon/"+name, func(t *testing.T) { killAt(t, name) })
	}
	for _, name := range workerFailpoints(t) {
		t.Run("worker/"+name, func(t *testing.T) { killAt(t, name) })
	}
}

func workerFailpoints(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("../../bin/kuasar-task", "failpoints").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))
}

func killAt(t *testing.T, name string) {
	n := newNode(t)
	bystander, id := n.run("sleep 1000")
	started := n.status(id).StartedAt
	pid := n.exec(id, "cat /proc/1/stat | cut -d' ' -f22")

	n.must(n.Kill())
	// The worker inherits the daemon's environment: it must be a new one.
	n.killWorker()
	n.SetEnviron(failpoint.Env + "=" + name)
	hit := n.watchDeath()
	// A point of the recovery kills the daemon while it starts.
	if err := n.Start(n.ctx); err == nil {
		n.lifecycle()
	}
	if !hit() {
		t.Errorf("nothing died at %s: is it on no path?", name)
	}

	n.SetEnviron()
	n.must(n.Kill())
	n.must(n.Start(n.ctx))
	if s := n.status(id); s.State != runtime.ContainerState_CONTAINER_RUNNING || s.StartedAt != started {
		t.Fatalf("the other pod's container is %v", s)
	}
	if got := n.exec(id, "cat /proc/1/stat | cut -d' ' -f22"); got != pid {
		t.Errorf("the other pod's process started at %q, now %q", pid, got)
	}
	n.removeOthers(bystander)
	// A node that can do all of it again has lost nothing.
	if err := n.lifecycle(); err != nil {
		t.Errorf("afterwards: %v", err)
	}
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

// watchDeath returns a function that says whether the daemon or the worker
// has died of SIGKILL since.
func (n *node) watchDeath() func() bool {
	mark := n.Mark()
	return func() bool {
		select {
		case <-n.Exited():
			return true
		case <-time.After(deathTime):
			return strings.Contains(n.Log(mark), "worker died")
		}
	}
}
