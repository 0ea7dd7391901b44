package guest

import (
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// Marks are when the phases of the guest's boot ended, by the clock that the
// kernel starts with. The host has no other way to know.
type Marks struct{ phases []*api.Phase }

// Mark ends a phase.
func (m *Marks) Mark(name string) {
	p := &api.Phase{Name: name, End: sinceBoot()}
	if n := len(m.phases); n > 0 {
		p.Begin = m.phases[n-1].End
	}
	m.phases = append(m.phases, p)
}

// End ends the last phase, and returns all.
func (m *Marks) End(name string) *api.PhasesResponse {
	m.Mark(name)
	return &api.PhasesResponse{Phases: m.phases, Took: m.phases[len(m.phases)-1].End}
}

// sinceBoot is the age of the kernel's clock in nanoseconds.
func sinceBoot() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return ts.Nano()
}
