package bed

import (
	"strings"
	"sync"
)

// module is in the stack of a race that is ours.
const module = "github.com/containerd-kuasar/containerd-kuasar/"

// maxReport bounds a report, in bytes.
const maxReport = 64 << 10

// races picks the race detector's reports from the daemon's log. Those that
// only containerd's own code takes part in are left out.
type races struct {
	mu      sync.Mutex
	report  *strings.Builder // nil outside of one
	reports []string
}

// line takes one of the log, in order.
func (r *races) line(line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case strings.HasPrefix(line, "WARNING: DATA RACE"):
		r.report = &strings.Builder{}
	case r.report != nil && strings.HasPrefix(line, "====="):
		if text := r.report.String(); strings.Contains(text, module) {
			r.reports = append(r.reports, text)
		}
		r.report = nil
	}
	if r.report != nil && r.report.Len() < maxReport {
		r.report.WriteString(line + "\n")
	}
}

// found returns the reports so far.
func (r *races) found() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reports
}
