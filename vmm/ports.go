package vmm

import (
	"context"
	"net"

	"github.com/containerd/log"

	"github.com/containerd-kuasar/containerd-kuasar/task/forward"
	"github.com/containerd-kuasar/containerd-kuasar/vmm/network"
)

// offer carries what is dialed in the pod's network namespace on localhost to
// the guest's, which is where CRI forwards ports from. It ends with the pod, and
// with this daemon: the next one offers again. A kernel that cannot do that is
// no reason to be without the pod.
func (p *pod) offer() {
	if p.netns == "" {
		return
	}
	c, err := network.NewCatch(p.netns)
	if err != nil {
		log.L.WithError(err).WithField("sandbox", p.id).Warn("ports of the pod cannot be forwarded")
		return
	}
	go forward.Offer(p.life, c, func(ctx context.Context) (net.Conn, error) { return p.way().Dial(ctx, forward.Port) })
}
