package vmm

import "time"

// kind is what the pods of one shape want.
type kind struct {
	shape  shape
	within time.Duration // a clone has that to be loaded
	size   int
	ready  []*spare
	lacks  bool // a template: there was none when it was looked for
	rest   pause
	labels []string // of metrics
}

// pause is a time in which something is not tried.
type pause struct {
	until  time.Time
	length time.Duration
}

// begin pauses, for twice as long as the last time, unless that is longer ago
// than the longest pause: then this is the first of a new row.
func (p *pause) begin(now time.Time, least, most time.Duration) (first bool) {
	if now.Sub(p.until) > most {
		p.length = 0
	}
	first = p.length == 0
	p.length = min(max(least, 2*p.length), most)
	p.until = now.Add(p.length)
	return first
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
