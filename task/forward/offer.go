package forward

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// Dial reaches Port of a guest.
type Dial func(context.Context) (net.Conn, error)

// pause is how long a listener rests that cannot take a connection: mostly for
// want of descriptors.
const pause = 100 * time.Millisecond

// Offer passes what l takes to the guest's ports of the same numbers, until ctx
// is done or l is closed, and returns when the last connection has ended. The
// LocalAddr of a connection says its port. It is the host's end, and takes up to
// Limit connections at a time; more wait.
func Offer(ctx context.Context, l net.Listener, dial Dial) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var all sync.WaitGroup
	defer all.Wait()
	free := make(chan struct{}, Limit)
	for {
		free <- struct{}{}
		c, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			<-free
			rest(ctx)
			continue
		}
		all.Go(func() {
			defer func() { <-free }()
			offer(ctx, c, dial)
		})
	}
}

// offer serves one connection. Whoever made it learns of an error by its reset.
func offer(ctx context.Context, c net.Conn, dial Dial) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return
	}
	defer context.AfterFunc(ctx, func() { tcp.Close() })()
	_ = Pass(ctx, tcp, uint16(tcp.LocalAddr().(*net.TCPAddr).Port), dial)
}

func rest(ctx context.Context) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
