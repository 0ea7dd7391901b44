package e2e

import (
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// TestEvents holds that a task's life shows the same events whoever runs it.
func TestEvents(t *testing.T) {
	each(t, func(t *testing.T, n *fixture) {
		c, err := n.pod(nil).Create(n.ctx, bed.Script("trap 'exit 0' TERM; while :; do sleep 0.1; done"))
		n.must(err)
		client, err := n.Client()
		n.must(err)
		ctx := namespaces.WithNamespace(n.ctx, bed.Namespace)
		events, errs := client.EventService().Subscribe(ctx, `topic~="^/tasks/",event.container_id=="`+c.ID+`"`)

		n.must(c.Start(n.ctx))
		n.exec(c, "true")
		n.ctr("tasks", "pause", c.ID)
		n.ctr("tasks", "resume", c.ID)
		n.must(c.Stop(n.ctx, 10))

		want := []string{
			"/tasks/create", "/tasks/start",
			"/tasks/exec-added", "/tasks/exec-started", "/tasks/exit",
			"/tasks/paused", "/tasks/resumed",
			"/tasks/exit", "/tasks/delete",
		}
		var topics []string
		for len(topics) < len(want) {
			select {
			case e := <-events:
				topics = append(topics, e.Topic)
			case err := <-errs:
				t.Fatalf("after %q: %v", topics, err)
			}
		}
		if n.handler == bed.Stock {
			// The shim sends the exit, the daemon the delete: either may come first.
			slices.Sort(want)
			slices.Sort(topics)
		}
		if !slices.Equal(topics, want) {
			t.Errorf("events\n%q, want\n%q", topics, want)
		}
	})
}
