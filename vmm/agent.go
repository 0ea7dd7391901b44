package vmm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/task"
	"github.com/containerd-kuasar/containerd-kuasar/task/stream"
)

// agentTime bounds the making of a connection to an agent that has said hello.
const agentTime = 10 * time.Second

// Agent implements sandbox.Sandbox. Callers of the time share one connection.
func (p *pod) Agent(ctx context.Context) (*task.Client, error) {
	err := p.running()
	if errdefs.IsFailedPrecondition(err) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	if err == nil {
		var c *task.Client
		if c, err = p.connect(ctx); err == nil {
			return c, nil
		}
	}
	return nil, fmt.Errorf("agent of pod %s: %w", p.id, err)
}

// connect returns the connection to the agent, and makes one if there is none.
func (p *pod) connect(ctx context.Context) (*task.Client, error) {
	if c := p.connected(); c != nil {
		return c, nil
	}
	select {
	case p.dialing <- struct{}{}:
		defer func() { <-p.dialing }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if c := p.connected(); c != nil { // by who was before us
		return c, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, agentTime, errors.Join(errStalled, errdefs.ErrUnavailable))
	defer cancel()
	c, err := p.dial(ctx)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	return c, err
}

// errStalled is of a guest that takes connections and does not answer.
var errStalled = fmt.Errorf("it did not answer within %v", agentTime)

// Stream implements sandbox.Streamer.
func (p *pod) Stream(ctx context.Context) (net.Conn, error) {
	if err := p.running(); err != nil {
		return nil, fmt.Errorf("streams of pod %s: %w", p.id, err)
	}
	return p.way().Dial(ctx, stream.Port)
}

// controls are the machine's, while it runs.
func (p *pod) controls() VM {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.control
}

// way to the guest.
func (p *pod) way() transport {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.transport
}

func (p *pod) dial(ctx context.Context) (*task.Client, error) {
	conn, err := p.way().Dial(ctx, agentPort)
	if err != nil {
		return nil, err
	}
	c, err := task.NewClient(ctx, conn)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.client = c
	return c, nil
}

func (p *pod) connected() *task.Client {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.client == nil {
		return nil
	}
	select {
	case <-p.client.Done():
		return nil
	default:
		return p.client
	}
}
