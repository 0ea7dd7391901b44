package restart

import (
	"fmt"
	"os"
	"path/filepath"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// bystander is a pod that must not notice what happens beside it: one of its
// containers writes all the time, another one ends while there is no daemon.
type bystander struct {
	n             *node
	pod           *pod
	talks, leaves string // containers' ids
	gate          gate
	started       int64
	process       string // when the first process of talks started
}

const startTime = "cat /proc/1/stat | cut -d' ' -f22"

func (n *node) bystander() *bystander {
	n.t.Helper()
	b := &bystander{n: n}
	g, mount := n.gate(fmt.Sprintf("bystander-%d", counter.Add(1)))
	b.gate = g
	b.pod, b.talks = n.run("i=0; while [ ! -e /gate/end ]; do echo line $i; i=$((i+1)); sleep 0.02; done; echo $i lines; exit 7", mount)
	var err error
	b.leaves, err = n.createContainer(b.pod, "leaves", pass+"; echo bye; exit 5", mount)
	n.must(err)
	n.must(n.startContainer(b.leaves))
	b.started = n.status(b.talks).StartedAt
	b.process = n.exec(b.talks, startTime)
	return b
}

// leave ends one container; the daemon is dead.
func (b *bystander) leave() {
	b.n.t.Helper()
	b.gate.open(b.n.t)
	b.n.must(b.n.awaitGone(b.n.ctx, b.leaves))
}

// runs holds that one container is as it was.
func (b *bystander) runs() {
	n, t := b.n, b.n.t
	t.Helper()
	if s := n.status(b.talks); s.State != runtime.ContainerState_CONTAINER_RUNNING || s.StartedAt != b.started {
		t.Fatalf("the other pod's container is %v", s)
	}
	if got := n.exec(b.talks, startTime); got != b.process {
		t.Errorf("the other pod's process started at %q, now %q", b.process, got)
	}
	if s, err := n.Runtime.ContainerStats(n.ctx, &runtime.ContainerStatsRequest{ContainerId: b.talks}); err != nil || s.Stats.Memory.WorkingSetBytes.GetValue() == 0 || s.Stats.Cpu.UsageCoreNanoSeconds.GetValue() == 0 {
		t.Errorf("the other pod's stats are %v, %v", s, err)
	}
}

// left holds that nothing is forgotten of the one that left.
func (b *bystander) left() {
	n, t := b.n, b.n.t
	t.Helper()
	if s := n.awaitExit(b.leaves); s.ExitCode != 5 || s.FinishedAt <= s.StartedAt {
		t.Errorf("the container that ended without a daemon is %v", s)
	}
	if got := n.output(b.pod, "leaves"); got != "bye\n" {
		t.Errorf("the container that ended without a daemon wrote %q", got)
	}
}

// end ends the other container: every line of its must be in its log, once.
func (b *bystander) end() {
	n, t := b.n, b.n.t
	t.Helper()
	n.must(os.WriteFile(filepath.Join(filepath.Dir(b.gate.path), "end"), nil, 0o644))
	if s := n.awaitExit(b.talks); s.ExitCode != 7 {
		t.Errorf("the other pod's container ended as %v", s)
	}
	n.counted(n.output(b.pod, "c"))
}
