package bed

import (
	"strings"
	"testing"
)

func TestRaces(t *testing.T) {
	const log = `time="..." level=info msg="starts"
==================
WARNING: DATA RACE
Write at 0x00c000 by goroutine 7:
  github.com/containerd/containerd/v2/core/events.Publish()
==================
==================
WARNING: DATA RACE
Read at 0x00c001 by goroutine 8:
  github.com/containerd-kuasar/containerd-kuasar/plugins/tasks.(*Task).PID()
time="..." level=info msg="goes on"
==================
github.com/containerd-kuasar/containerd-kuasar/plugins is no race
`
	r := &races{}
	for line := range strings.Lines(log) {
		r.line(strings.TrimSuffix(line, "\n"))
	}
	got := r.found()
	if len(got) != 1 || !strings.Contains(got[0], "tasks.(*Task).PID()") {
		t.Errorf("got %q", got)
	}
}
