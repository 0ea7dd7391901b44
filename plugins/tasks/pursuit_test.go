package tasks

import (
	"errors"
	goruntime "runtime"
	"sync/atomic"
	"testing"
	"time"
)

// endEvents ends all streams of events, and not the connections.
func (a *agent) endEvents() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for c := range a.subs {
		delete(a.subs, c)
		close(c)
	}
}

// A guest whose events end, or cannot be had, while its connection lives is asked
// for them again by one goroutine, more and more slowly.
func TestPursuit(t *testing.T) {
	const watched = 1500 * time.Millisecond
	for name, hostile := range map[string]func(a *agent){
		"no list":   func(a *agent) { a.fail["list"] = errors.New("no list") },
		"no events": func(a *agent) { a.fail["events"] = errors.New("no events") },
		"ends":      func(*agent) {},
	} {
		t.Run(name, func(t *testing.T) {
			r := newGuestRig(t)
			c := r.silent("c")
			var asked atomic.Int32
			r.agent.mu.Lock()
			hostile(r.agent)
			r.agent.hooks["events"] = func() { asked.Add(1) }
			r.agent.hooks["list"] = func() {
				if name == "ends" {
					r.agent.endEvents()
				}
			}
			r.agent.mu.Unlock()
			before := goruntime.NumGoroutine()
			r.agent.endEvents()
			over := time.NewTimer(watched)
			defer over.Stop()
			select {
			case <-over.C:
			case <-r.ctx.Done():
			}
			// After 0, 0.1, 0.3, 0.7 and 1.5 s.
			if n := asked.Load(); n < 2 || n > 6 {
				t.Errorf("asked for events %d times in %v", n, watched)
			}
			if n := goruntime.NumGoroutine() - before; n > 10 {
				t.Errorf("%d more goroutines", n)
			}

			r.agent.mu.Lock()
			clear(r.agent.fail)
			clear(r.agent.hooks)
			r.agent.mu.Unlock()
			r.agent.exit("c", "", 3) // it is told when events are followed again
			if e := r.wait(c); e.Status != 3 {
				t.Errorf("exit %+v", e)
			}
		})
	}
}
