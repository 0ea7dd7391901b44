package vmm

import (
	"context"
	"net"
	"time"

	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
)

// way is how a machine comes to be; nil for one that boots.
func (t *trial) way() string {
	if t == nil {
		return "vmm.boot"
	}
	return "vmm.clone"
}

// awake is greet, with what the guest says its time went into. A clone's clock
// is that of its template: it says nothing.
func (p *pod) awake(ctx context.Context, l net.Listener, t *trial) error {
	guest, span := trace.Start(ctx, "vmm.guest")
	begin := time.Now()
	err := p.greet(guest, l)
	end := time.Now()
	if err == nil && t == nil && trace.On(ctx) {
		if c, err := p.connect(ctx); err == nil { // else setup fails, and says why
			c.Booted(guest, begin, end)
		}
	}
	span.EndAt(end, err)
	return err
}
