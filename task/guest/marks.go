package guest

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// marksVar is the environment's of a PID 1 that executes itself again.
const marksVar = "KUASAR_BOOT"

// Marks are when the phases of the guest's boot ended, by the clock that the
// kernel starts with. The host has no other way to know.
type Marks struct{ text string } // "name=nanoseconds " for each

// Resume returns those of the program that this one was, if it was one.
func Resume() *Marks {
	m := &Marks{os.Getenv(marksVar)}
	_ = os.Unsetenv(marksVar)
	return m
}

// Mark ends a phase.
func (m *Marks) Mark(name string) {
	m.text += name + "=" + strconv.FormatInt(sinceBoot(), 10) + " "
}

// Pass gives the marks to the program that this one is going to be.
func (m *Marks) Pass() { _ = os.Setenv(marksVar, m.text) }

// End ends the last phase, and returns all.
func (m *Marks) End(name string) *api.PhasesResponse {
	m.Mark(name)
	r := &api.PhasesResponse{}
	for _, mark := range strings.Fields(m.text) {
		name, at, _ := strings.Cut(mark, "=")
		end, err := strconv.ParseInt(at, 10, 64)
		if err != nil {
			continue // no mark of ours
		}
		r.Phases = append(r.Phases, &api.Phase{Name: name, Begin: r.Took, End: end})
		r.Took = end
	}
	return r
}

// sinceBoot is the age of the kernel's clock in nanoseconds.
func sinceBoot() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return ts.Nano()
}
