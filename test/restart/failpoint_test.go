package restart

import (
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
		if strings.HasPrefix(name, "vmm/") {
			continue // on no path of these pods; see vmm's own
		}
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

// lifecycle does everything that has outside effects, to its end or to the
// first error, in a pod that shares its processes: it has what others have, and
// an init.
func (n *node) lifecycle() error {
	config := n.podConfig()
	config.Linux.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_POD}
	p, err := n.runPod(config)
	if err != nil {
		return err
	}
	id, err := n.createContainer(p, "c", "sleep 1000")
	if err != nil {
		return err
	}
	if err := n.startContainer(id); err != nil {
		return err
	}
	if _, err := n.Runtime.ExecSync(n.ctx, &runtime.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}}); err != nil {
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
	client, err := n.Client()
	if err != nil {
		return err
	}
	container, err := client.LoadContainer(ctx, id)
	if err != nil {
		return err
	}
	task, err := container.Task(ctx, nil)
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
