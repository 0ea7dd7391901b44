package restart

import (
	"context"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// signalled bounds a signal to a guest that does not answer, which is waited for
// 20 s (killTime of plugins/tasks), and what else there is to be done.
const signalled = 30 * time.Second

// Processes of a machine.
const (
	qemu      = "qemu-system-x86_64"
	virtiofsd = "virtiofsd"
	vsockd    = "vhost-device-vsock"
)

// awaitNotReady blocks until CRI knows that a pod has ended.
func (n *node) awaitNotReady(p *pod) {
	n.t.Helper()
	ctx, cancel := context.WithCancel(n.ctx)
	defer cancel()
	events, err := n.Runtime.GetContainerEvents(ctx, &runtime.GetEventsRequest{})
	n.must(err)
	for {
		s, err := n.Runtime.PodSandboxStatus(n.ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: p.id})
		n.must(err)
		if s.Status.State == runtime.PodSandboxState_SANDBOX_NOTREADY {
			return
		}
		_, err = events.Recv()
		n.must(err)
	}
}

// within fails the test if f takes longer.
func (n *node) within(limit time.Duration, what string, f func() error) {
	n.t.Helper()
	began := time.Now()
	if err := f(); err != nil {
		n.t.Errorf("%s: %v", what, err)
	}
	if took := time.Since(began); took > limit {
		n.t.Errorf("%s took %v", what, took)
	}
}

func (n *node) signal(p *pod, name string, signal unix.Signal) {
	n.t.Helper()
	pid := n.machine(p)[name]
	if pid == 0 {
		n.t.Fatalf("pod %s has no process %s: %v", p.id, name, n.machine(p))
	}
	n.must(unix.Kill(pid, signal))
}

// sysrq has the kernel of a container's guest do something.
func (n *node) sysrq(id, letter string) {
	// It does not come to answer.
	_, _ = n.Runtime.ExecSync(n.ctx, &runtime.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo " + letter + " > /proc/sysrq-trigger"}, Timeout: 10})
}

func privileged(c *runtime.ContainerConfig) { c.Linux.SecurityContext.Privileged = true }

// TestVMDies ends pods in every way that they do not want. Another one lives on.
func TestVMDies(t *testing.T) {
	n := newVMNode(t)
	other, id := n.run("sleep 1000")
	before := n.status(id)
	for name, kill := range map[string]func(*pod, string){
		"VMM":                        func(p *pod, _ string) { n.signal(p, qemu, unix.SIGKILL) },
		"share's daemon":             func(p *pod, _ string) { n.signal(p, virtiofsd, unix.SIGKILL) },
		"vsock's daemon":             func(p *pod, _ string) { n.signal(p, vsockd, unix.SIGKILL) },
		"panic":                      func(_ *pod, id string) { n.sysrq(id, "c") },
		"power off":                  func(_ *pod, id string) { n.sysrq(id, "o") },
		"reboot":                     func(_ *pod, id string) { n.sysrq(id, "b") },
		"VMM without a daemon":       func(p *pod, _ string) { n.restart(func() { n.signal(p, qemu, unix.SIGKILL) }) },
		"vsock's daemon without one": func(p *pod, _ string) { n.restart(func() { n.signal(p, vsockd, unix.SIGKILL) }) },
	} {
		t.Run(name, func(t *testing.T) {
			n := *n
			n.t = t
			config := n.podConfig()
			config.Linux.SecurityContext.Privileged = true
			p, err := n.runPod(config)
			n.must(err)
			id, err := n.createContainer(p, "c", "echo hello; sleep 1000", privileged)
			n.must(err)
			n.must(n.startContainer(id))
			n.must(awaitText(n.ctx, n.logPath(p, "c"), "hello"))
			began := time.Now()
			kill(p, id)
			if s := n.awaitExit(id); s.ExitCode != 137 || s.Reason != "Error" || s.FinishedAt < began.UnixNano() {
				t.Errorf("container exited as %v", s)
			}
			n.awaitNotReady(p)
			if err := n.startAgain(p); err == nil || !strings.Contains(err.Error(), "remove the pod") && !strings.Contains(err.Error(), "not running") {
				t.Errorf("a container in a pod that has ended: %v", err)
			}
			if got := n.output(p, "c"); got != "hello\n" {
				t.Errorf("log %q", got)
			}
			n.within(20*time.Second, "remove", func() error { return n.remove(p.id) })
			if left := n.machine(p); len(left) > 0 {
				t.Errorf("processes %v are left", left)
			}
		})
	}
	if after := n.status(id); after.String() != before.String() {
		t.Errorf("the other container was %v and is %v", before, after)
	}
	if got := n.exec(id, "echo lives"); got != "lives\n" {
		t.Errorf("the other container says %q", got)
	}
	n.must(n.remove(other.id))
}

func (n *node) startAgain(p *pod) error {
	id, err := n.createContainer(p, "again", "true")
	if err == nil {
		err = n.startContainer(id)
	}
	return err
}

// TestVMStalls stops the VMM of one pod. It is waited for, and no longer than is
// bearable; nobody else waits. When it goes on nothing was lost, and when it does
// not it can be ended.
func TestVMStalls(t *testing.T) {
	const lines = 500
	n := newVMNode(t)
	stalled, first := n.run(both(lines) + "; sleep 1000")
	well, second := n.run("sleep 1000")
	n.signal(stalled, qemu, unix.SIGSTOP)
	n.othersAnswer(first, second)
	n.within(30*time.Second, "start of the daemon", func() error { n.restart(nil); return nil })
	n.othersAnswer(first, second)
	exec := func() error {
		_, err := n.Runtime.ExecSync(n.ctx, &runtime.ExecSyncRequest{ContainerId: first, Cmd: []string{"true"}, Timeout: 5})
		return err
	}
	n.within(20*time.Second, "exec", func() error {
		if err := exec(); err == nil {
			t.Error("exec in a guest that is stopped")
		}
		return nil
	})
	// It goes on.
	n.signal(stalled, qemu, unix.SIGCONT)
	n.within(30*time.Second, "exec in a guest that goes on", exec)
	n.wrote(stalled, "c", lines)
	// And stops for good.
	n.signal(stalled, qemu, unix.SIGSTOP)
	n.within(signalled, "SIGTERM", func() error {
		if _, err := n.Runtime.StopContainer(n.ctx, &runtime.StopContainerRequest{ContainerId: first, Timeout: 5}); err == nil {
			t.Error("a container of a guest that is stopped took a signal")
		}
		return nil
	})
	n.within(signalled, "remove", func() error { return n.remove(stalled.id) })
	n.othersAnswer(second)
	n.must(n.remove(well.id))
}

// othersAnswer holds that what does not concern a guest that stalls answers at
// once, and that of its containers nothing is said but what is known.
func (n *node) othersAnswer(ids ...string) {
	n.t.Helper()
	n.within(2*time.Second, "list of pods", func() error {
		_, err := n.Runtime.ListPodSandbox(n.ctx, &runtime.ListPodSandboxRequest{})
		return err
	})
	n.within(2*time.Second, "list of containers", func() error {
		list, err := n.Runtime.ListContainers(n.ctx, &runtime.ListContainersRequest{})
		for _, c := range list.GetContainers() {
			if c.State != runtime.ContainerState_CONTAINER_RUNNING {
				n.t.Errorf("container %v", c)
			}
		}
		return err
	})
	for _, id := range ids {
		n.within(2*time.Second, "status", func() error {
			_, err := n.Runtime.ContainerStatus(n.ctx, &runtime.ContainerStatusRequest{ContainerId: id})
			return err
		})
	}
	lives := ids[len(ids)-1]
	n.within(5*time.Second, "stats", func() error {
		list, err := n.Runtime.ListContainerStats(n.ctx, &runtime.ListContainerStatsRequest{})
		found := false
		for _, s := range list.GetStats() {
			found = found || s.Attributes.Id == lives && s.Cpu.GetUsageCoreNanoSeconds().GetValue() > 0
		}
		if !found {
			n.t.Errorf("no stats of container %s: %v", lives, list)
		}
		return err
	})
	if got := n.exec(lives, "echo lives"); got != "lives\n" {
		n.t.Errorf("the other container says %q", got)
	}
}
