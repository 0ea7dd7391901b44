package restart

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// machinePoints are the points of virtual machines alone. Of those that each of a
// machine's processes passes, some are also tried with the last one, the VMM.
func machinePoints() []string {
	var points []string
	for _, name := range failpoint.Names() {
		switch of, rest, _ := strings.Cut(name, "/"); of {
		case "vmm":
			if strings.HasPrefix(rest, "template/") || strings.HasPrefix(rest, "pool/") || strings.HasPrefix(name, interfacePoints) {
				continue // see TestVMKilledWithTemplate, TestVMKilledWithPool and TestVMKilledWithInterface
			}
			if strings.HasPrefix(rest, "resize/") { // of pods that are resized: see package vmm
				continue
			}
			points = append(points, name)
			if rest == "launch/fork" || rest == "launch/go" {
				points = append(points, name+":3")
			}
		case "network":
			points = append(points, name)
		}
	}
	return points
}

// interfacePoints begin the names of those of interfaces that are added later.
const interfacePoints = "vmm/nic/"

// taskPoints are those of all pods that do something else for a guest, whose
// stdio is carried.
var taskPoints = []string{"tasks/create/created", "tasks/start/started", "tasks/exit/told", "tasks/delete/released", "sandbox/recover/restored"}

// TestVMKilledAtFailpoint kills the daemon at each point on the way of a pod in a
// virtual machine. Another one must not notice, and nothing must be left of the
// first. Starting machines takes long: all points have one bed.
func TestVMKilledAtFailpoint(t *testing.T) {
	n := newVMNodeOf(t, bed.Options{Blocks: true})
	other := n.guestBystander()
	before, err := n.Leaks(n.ctx)
	n.must(err)
	points := slices.Concat(machinePoints(), taskPoints)
	if len(points) < 20 {
		t.Fatalf("points %q", points)
	}
	for i, point := range points {
		ok := t.Run(point, func(t *testing.T) {
			n := *n
			n.t = t
			n.vmKillAt(point)
			other.check(&n, i)
			n.removeOthers(other.pod)
			after, err := n.Leaks(n.ctx)
			n.must(err)
			if left := slices.DeleteFunc(after, func(s string) bool { return slices.Contains(before, s) }); len(left) > 0 {
				t.Errorf("leaks:\n%s", strings.Join(left, "\n"))
			}
		})
		if !ok {
			t.FailNow() // the next would stand on what this one left
		}
	}
	if err := n.cycle(vmKind); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	other.end()
}

// vmKind is a pod in a virtual machine whose root file system is a disk, with a
// volume that the host shares.
var vmKind = kind{bed.VMMBlock, func(c *runtime.ContainerConfig) {
	c.Mounts = append(c.Mounts, &runtime.Mount{HostPath: "/usr", ContainerPath: "/host", Readonly: true})
}, []string{"true"}}

// vmKillAt has the daemon die at a point while a pod lives, and starts the next.
func (n *node) vmKillAt(point string) {
	n.t.Helper()
	n.must(n.Kill())
	n.SetEnviron(failpoint.Env + "=" + point)
	mark := n.Mark()
	var err error
	if n.Start(n.ctx) == nil {
		while, stop := n.whileAlive()
		err = while.cycle(vmKind)
		stop()
	}
	if !n.died(daemon, mark) {
		n.t.Errorf("it did not die at %s: is it on no path? %v", point, err)
	}
	n.SetEnviron()
	n.must(n.Kill())
	n.must(n.Start(n.ctx))
}

// guest is a pod in a virtual machine that must not notice what happens beside
// it.
type guest struct {
	pod     *pod
	talks   string // container's id
	door    door
	view    *runtime.ContainerStatus
	machine map[string]int
	process string
}

func (n *node) guestBystander() *guest {
	n.t.Helper()
	d, mount := n.door("bystander")
	p, id := n.run("i=0; while [ ! -e /door/open ]; do echo line $i; i=$((i+1)); sleep 0.05; done; echo $i lines; exit 7", mount)
	return &guest{pod: p, talks: id, door: d, view: n.status(id), machine: n.machine(p), process: n.exec(id, startTime)}
}

// check holds that all is as it was, whatever round it is.
func (g *guest) check(n *node, round int) {
	n.t.Helper()
	if s := n.status(g.talks); s.String() != g.view.String() {
		n.t.Errorf("the other pod's container was %v and is %v", g.view, s)
	}
	if m := n.machine(g.pod); fmt.Sprint(m) != fmt.Sprint(g.machine) {
		n.t.Errorf("the other pod's machine was %v and is %v", g.machine, m)
	}
	if got := n.exec(g.talks, startTime); got != g.process {
		n.t.Errorf("the other pod's process started at %q, now %q", g.process, got)
	}
	s, err := n.Runtime.PodSandboxStatus(n.ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: g.pod.id})
	n.must(err)
	if s.Status.State != runtime.PodSandboxState_SANDBOX_READY {
		n.t.Errorf("the other pod is %v in round %d", s.Status.State, round)
	}
}

// end ends the container: every line of it must be in its log, once.
func (g *guest) end() {
	n := g.door.n
	n.t.Helper()
	g.door.open()
	if s := n.awaitExit(g.talks); s.ExitCode != 7 {
		n.t.Errorf("the other pod's container ended as %v", s)
	}
	n.counted(n.output(g.pod, "c"))
}

// counted holds that a text has lines from 0 on, and their number at its end.
func (n *node) counted(text string) {
	n.t.Helper()
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	last := len(lines) - 1
	for i, line := range lines[:last] {
		if line != fmt.Sprint("line ", i) {
			n.t.Fatalf("line %d of the other pod's log is %q", i, line)
		}
	}
	if lines[last] != fmt.Sprint(last, " lines") {
		n.t.Errorf("the other pod's log ends with %q after %d lines", lines[last], last)
	}
}
