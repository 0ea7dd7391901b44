package tasks

import (
	"maps"
	"time"

	"github.com/containerd/log"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
)

// pursuit is of a sandbox whose agent was lost: there is one, however often that
// happens, and an agent that is lost at once when it is found is not asked more
// often than one that is not found.
type pursuit struct {
	active bool          // somebody reaches for the agent
	again  bool          // it was lost meanwhile
	won    time.Time     // when it was reached last
	delay  time.Duration // before the next attempt
}

// slow is the next delay of one that goes on.
func (p *pursuit) slow() time.Duration {
	p.delay = min(max(2*p.delay, minRetry), maxRetry)
	return p.delay
}

// pursue begins a pursuit, and returns how long to wait first, unless there is
// one already.
func (r *Runtime) pursue(id string) (wait time.Duration, begun bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	recent := func(p *pursuit) bool { return time.Since(p.won) < maxRetry }
	maps.DeleteFunc(r.pursuits, func(_ string, p *pursuit) bool { return !p.active && !recent(p) })
	p := r.pursuits[id]
	switch {
	case p == nil:
		r.pursuits[id] = &pursuit{active: true}
		return 0, true
	case p.active:
		p.again = true
		return 0, false
	}
	p.active = true
	return p.slow(), true
}

// attempted takes note of an attempt, and returns how long to wait for the next
// one, or that none is needed.
func (r *Runtime) attempted(id string, err error) (wait time.Duration, over bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pursuits[id]
	if err == nil {
		p.won = time.Now()
		if !p.again {
			p.active = false
			return 0, true
		}
	}
	p.again = false
	return p.slow(), false
}

// abandon ends a pursuit for good.
func (r *Runtime) abandon(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pursuits, id)
}

// reach follows the agent that a sandbox has now.
func (r *Runtime) reach(id string, live *sandbox.Live) {
	wait, begun := r.pursue(id)
	if !begun {
		return
	}
	for over := false; !over; {
		timer := time.NewTimer(wait)
		select {
		case <-live.Done():
			timer.Stop()
			r.abandon(id)
			r.sandboxEnded(id)
			return
		case <-r.life.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		err := r.attempt(id, live)
		if wait, over = r.attempted(id, err); err != nil && r.life.Err() == nil {
			log.G(r.life).WithError(err).WithField("sandbox", id).Warn("agent is not reached")
		}
	}
}
