package runc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"

	"github.com/containerd-kuasar/containerd-kuasar/internal/cgroup"
	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/host"
	"github.com/containerd-kuasar/containerd-kuasar/task"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

var (
	fpStarted = failpoint.New("runc/start/started")
	fpKilled  = failpoint.New("runc/stop/killed")
	fpUnpin   = failpoint.New("runc/stop/unpinned")
)

// warm covers the time until a container's process is moved into its cgroup:
// CRI makes the first container of a pod right after the pod.
const warm = 300 * time.Millisecond

// Start implements sandbox.Sandbox.
func (p *pod) Start(ctx context.Context) error {
	cgroup.Warm(warm)
	if err := p.run(ctx); err != nil {
		err = fmt.Errorf("start pod %s: %w", p.id, err)
		return errors.Join(err, p.undo(context.WithoutCancel(ctx)))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.config, p.start = nil, true
	p.ns.Sysctls = host.Sysctls{}
	fpStarted.Hit()
	return nil
}

func (p *pod) run(ctx context.Context) error {
	// Only the node's first pod has to wait for this.
	agent := make(chan error, 1)
	go func() {
		_, err := p.backend.Worker.Agent(ctx)
		agent <- err
	}()
	err := p.make(ctx)
	if aerr := <-agent; aerr != nil {
		return errors.Join(aerr, err)
	}
	if err != nil {
		return err
	}
	if p.ns.User != nil || p.ns.PID == host.PIDPod {
		return p.launch(ctx, p.ns.PID == host.PIDPod)
	}
	return nil
}

// make makes what needs no process.
func (p *pod) make(context.Context) error {
	process, _, err := host.Labels(p.config.GetLinux().GetSecurityContext().GetSelinuxOptions())
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.label = process
	p.mu.Unlock()
	if err := host.MakeFiles(p.dir, p.config, p.ns.User); err != nil {
		return err
	}
	if p.ns.User == nil {
		return host.Pin(p.dir, p.ns)
	}
	if err := host.Passable(p.dir); err != nil {
		return err
	}
	if p.ns.Net != "" {
		return host.PinOwner(p.dir, p.ns.Net)
	}
	return nil
}

// undo leaves nothing of a failed start but files.
func (p *pod) undo(ctx context.Context) error {
	p.mu.Lock()
	label := p.label
	p.label = ""
	p.mu.Unlock()
	host.ReleaseLabel(label)
	ctx, cancel := context.WithTimeout(ctx, undoTime)
	defer cancel()
	return p.clear(ctx)
}

// undoTime bounds the cleaning up after a failed start whose caller may have
// given up.
const undoTime = 10 * time.Second

// Stop implements sandbox.Sandbox.
func (p *pod) Stop(ctx context.Context) error {
	p.mu.Lock()
	p.stop = true
	making := p.making
	p.mu.Unlock()
	if making != nil {
		select {
		case <-making.done:
		case <-ctx.Done():
			return fmt.Errorf("stop pod %s: %w", p.id, ctx.Err())
		}
	}
	if err := p.kill(ctx); err != nil {
		return fmt.Errorf("stop pod %s: %w", p.id, err)
	}
	fpKilled.Hit()
	if err := p.removeInit(ctx); err != nil {
		return fmt.Errorf("stop pod %s: %w", p.id, err)
	}
	if err := errors.Join(host.Unpin(p.dir), host.RemoveFiles(p.dir)); err != nil {
		return fmt.Errorf("stop pod %s: %w", p.id, err)
	}
	fpUnpin.Hit()
	p.end(sandbox.Exit{At: time.Now()})
	return nil
}

// removeInit deletes the container that nobody but the pod knows of, so that
// the client may remove the pod's cgroup.
func (p *pod) removeInit(ctx context.Context) error {
	ids, err := p.containers()
	if err != nil || !slices.Contains(ids, p.id) {
		return err
	}
	return p.remove(ctx, p.id)
}

// Delete implements sandbox.Sandbox.
func (p *pod) Delete(ctx context.Context) error {
	if err := p.clear(ctx); err != nil {
		return fmt.Errorf("delete pod %s: %w", p.id, err)
	}
	p.end(sandbox.Exit{At: time.Now()})
	return nil
}

// clear removes all there may be, also after a crash.
func (p *pod) clear(ctx context.Context) error {
	ids, err := p.containers()
	if err != nil {
		return err
	}
	if err := p.kill(ctx); err != nil {
		return err
	}
	for _, id := range ids {
		if err := p.remove(ctx, id); err != nil {
			return err
		}
	}
	return errors.Join(host.Unpin(p.dir), host.RemoveFiles(p.dir))
}

// kill ends every process of the pod and returns when they are gone. It does
// not need the worker where the pod has nothing in it.
func (p *pod) kill(ctx context.Context) error {
	ids, err := p.containers()
	if err != nil || len(ids) == 0 {
		return err
	}
	agent, err := p.backend.Worker.Agent(ctx)
	if err != nil {
		return err
	}
	list, err := agent.List(ctx, &api.ListRequest{})
	if err != nil {
		return fmt.Errorf("list processes: %w", errgrpc.ToNative(err))
	}
	ctx = namespaces.WithNamespace(ctx, p.namespace)
	ids = slices.DeleteFunc(ids, func(id string) bool {
		return !slices.ContainsFunc(list.Processes, func(q *api.Process) bool {
			return q.Namespace == p.namespace && q.ContainerId == id && q.ExecId == "" && q.Status != api.Status_STATUS_STOPPED
		})
	})
	return end(ctx, agent, ids...)
}

// end kills containers and returns when they are gone.
func end(ctx context.Context, agent *task.Client, ids ...string) error {
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

// remove deletes a container that has ended, and its bundle.
func (p *pod) remove(ctx context.Context, id string) error {
	agent, err := p.backend.Worker.Agent(ctx)
	if err != nil {
		return err
	}
	_, err = agent.Delete(namespaces.WithNamespace(ctx, p.namespace), &taskapi.DeleteRequest{ID: id})
	if err = errgrpc.ToNative(err); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	return host.RemoveBundle(p.dir, id)
}
