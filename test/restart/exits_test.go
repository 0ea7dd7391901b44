package restart

import (
	"fmt"
	"testing"
)

// Containers that exit while the daemon starts: before, during and after its
// recovery. The CRI plugin opens the output of each and may find it exited a
// moment later.
func TestExitsWhileTheDaemonStarts(t *testing.T) {
	const count, lines = 12, 300
	n := newNode(t)
	type container struct {
		pod  *pod
		id   string
		gate gate
	}
	var all []container
	for i := range count {
		g, mount := n.gate(fmt.Sprint("starts-", i))
		p, id := n.run(fmt.Sprintf("%s; sleep 0.%03d; %s; exit 7", pass, 20*i, numbered(lines)), mount)
		all = append(all, container{p, id, g})
	}
	n.restart(func() {
		for _, c := range all {
			c.gate.open(t)
		}
	})
	for _, c := range all {
		if s := n.awaitExit(c.id); s.ExitCode != 7 {
			t.Errorf("exit code %d (%s %s)", s.ExitCode, s.Reason, s.Message)
		}
		compare(t, n.output(c.pod, "c"), want(lines))
	}
}
