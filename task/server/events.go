package server

import (
	"fmt"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// queue is how many events a subscriber may be behind. Each process makes one
// in its life, so this is a burst of as many exits.
const queue = 4096

var errBehind = fmt.Errorf("subscriber is %d events behind: subscribe again, then list: %w", queue, errdefs.ErrResourceExhausted)

// events hands each event to all subscribers and keeps none.
type events struct {
	mu   sync.Mutex
	subs map[chan *api.Event]struct{}
}

// subscribe returns a channel that is closed when its reader fell behind, and
// a function that ends the subscription.
func (e *events) subscribe() (<-chan *api.Event, func()) {
	c := make(chan *api.Event, queue)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.subs == nil {
		e.subs = map[chan *api.Event]struct{}{}
	}
	e.subs[c] = struct{}{}
	return c, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.subs, c)
	}
}

// publish never blocks.
func (e *events) publish(ev *api.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for c := range e.subs {
		select {
		case c <- ev:
		default:
			delete(e.subs, c)
			close(c)
		}
	}
}
