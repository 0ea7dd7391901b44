// Package task is the daemon's side of an agent: the Task API of containerd
// and the verbs of task/api over one ttrpc connection. The agent itself is in
// task/server and below, which the daemon never imports.
package task

import (
	"context"
	"fmt"
	"net"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// Protocol is the version of task/api/agent.proto that this build speaks.
const Protocol = api.Protocol

// RetainOutput is the annotation ("true") of a container's spec that makes its
// agent keep the newest output; see api.AgentClient.Retained.
const RetainOutput = api.RetainOutput

// Client is a connection to an agent. Safe for concurrent use; it does not
// reconnect: whoever made it makes the next one.
type Client struct {
	taskapi.TTRPCTaskService
	api.AgentClient

	conn *ttrpc.Client
	done chan struct{}
}

// NewClient takes over conn and checks that the agent speaks our protocol.
// It blocks for one round trip.
func NewClient(ctx context.Context, conn net.Conn) (*Client, error) {
	c := &Client{done: make(chan struct{})}
	c.conn = ttrpc.NewClient(conn, ttrpc.WithOnClose(func() { close(c.done) }), ttrpc.WithUnaryClientInterceptor(c.traced))
	c.TTRPCTaskService = taskapi.NewTTRPCTaskClient(c.conn)
	c.AgentClient = api.NewAgentClient(c.conn)
	info, err := c.Info(ctx, &api.InfoRequest{})
	if err != nil {
		c.conn.Close()
		return nil, fmt.Errorf("ask agent for its version: %w", err)
	}
	if info.Protocol != Protocol {
		c.conn.Close()
		return nil, fmt.Errorf("agent %s speaks protocol %d, this daemon %d: install kuasar-task and containerd-kuasar of the same release: %w",
			info.Version, info.Protocol, Protocol, errdefs.ErrFailedPrecondition)
	}
	return c, nil
}

// Done is closed when the connection ended, by either side.
func (c *Client) Done() <-chan struct{} { return c.done }

// Guest has the verbs of an agent that is a guest's PID 1; others do not know
// them, which is errdefs.ErrNotImplemented.
func (c *Client) Guest() api.GuestService { return api.NewGuestClient(c.conn) }

// Close ends the connection. The agent and its containers run on.
func (c *Client) Close() error { return c.conn.Close() }
