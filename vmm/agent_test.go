package vmm

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

// mute is the way to a guest that does not answer.
type mute struct{ transport }

func (mute) Dial(ctx context.Context, _ uint32) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// A guest that has stalled is not waited for as long as a caller would.
func TestAgentStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pod{id: "pod", state: state{Started: true}, transport: mute{}, over: make(chan struct{}), dialing: make(chan struct{}, 1)}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		began := time.Now()
		if _, err := p.Agent(ctx); !errdefs.IsUnavailable(err) {
			t.Errorf("%v", err)
		}
		if took := time.Since(began); took != agentTime {
			t.Errorf("after %v", took)
		}
	})
}
