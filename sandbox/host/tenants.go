package host

import (
	"context"
	"fmt"
	"slices"
	"syscall"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"

	"github.com/containerd-kuasar/containerd-kuasar/task"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// Tenants are the containers that a pod has in an agent that other pods use,
// too, or had or will have: a bundle comes before its container and goes after
// it.
type Tenants struct {
	Dir       string // the sandbox's
	Namespace string // containerd's
	Agent     func(context.Context) (*task.Client, error)
}

// Kill ends every process of the pod and returns when they are gone. It does
// not need the agent where the pod has nothing in it.
func (t Tenants) Kill(ctx context.Context) error {
	ids, err := Bundles(t.Dir)
	if err != nil || len(ids) == 0 {
		return err
	}
	agent, err := t.Agent(ctx)
	if err != nil {
		return err
	}
	list, err := agent.List(ctx, &api.ListRequest{})
	if err != nil {
		return fmt.Errorf("list processes: %w", errgrpc.ToNative(err))
	}
	ids = slices.DeleteFunc(ids, func(id string) bool {
		return !slices.ContainsFunc(list.Processes, func(q *api.Process) bool {
			return q.Namespace == t.Namespace && q.ContainerId == id && q.ExecId == "" && q.Status != api.Status_STATUS_STOPPED
		})
	})
	return t.End(ctx, ids...)
}

// End kills containers and returns when they are gone.
func (t Tenants) End(ctx context.Context, ids ...string) error {
	if len(ids) == 0 {
		return nil
	}
	agent, err := t.Agent(ctx)
	if err != nil {
		return err
	}
	ctx = namespaces.WithNamespace(ctx, t.Namespace)
	for _, id := range ids {
		_, err := agent.Kill(ctx, &taskapi.KillRequest{ID: id, Signal: uint32(syscall.SIGKILL), All: true})
		if err = errgrpc.ToNative(err); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("kill container %s: %w", id, err)
		}
	}
	for _, id := range ids {
		_, err := agent.Wait(ctx, &taskapi.WaitRequest{ID: id})
		if err = errgrpc.ToNative(err); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("wait for container %s: %w", id, err)
		}
	}
	return nil
}

// Remove deletes containers that have ended, and their bundles.
func (t Tenants) Remove(ctx context.Context, ids ...string) error {
	ctx = namespaces.WithNamespace(ctx, t.Namespace)
	for _, id := range ids {
		agent, err := t.Agent(ctx)
		if err != nil {
			return err
		}
		_, err = agent.Delete(ctx, &taskapi.DeleteRequest{ID: id})
		if err = errgrpc.ToNative(err); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("delete container %s: %w", id, err)
		}
		if err := RemoveBundle(t.Dir, id); err != nil {
			return err
		}
	}
	return nil
}
