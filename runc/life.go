package runc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd-kuasar/containerd-kuasar/internal/cgroup"
	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/host"
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
		ctx, span := trace.Start(ctx, "runc.worker")
		_, err := p.backend.Worker.Agent(ctx)
		span.End(&err)
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
func (p *pod) make(ctx context.Context) (err error) {
	_, span := trace.Start(ctx, "runc.namespaces")
	defer span.End(&err)
	process, _, err := host.Labels(p.config.GetLinux().GetSecurityContext().GetSelinuxOptions())
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.label = process
	p.mu.Unlock()
	if err := errors.Join(host.MakeFiles(p.dir, p.config, p.ns.User), host.MakeShm(p.dir, p.config)); err != nil {
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
	if err := p.tenants().Kill(ctx); err != nil {
		return fmt.Errorf("stop pod %s: %w", p.id, err)
	}
	fpKilled.Hit()
	if err := p.removeInit(ctx); err != nil {
		return fmt.Errorf("stop pod %s: %w", p.id, err)
	}
	if err := errors.Join(host.Unpin(p.dir), host.RemoveShm(p.dir)); err != nil {
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
	return p.tenants().Remove(ctx, p.id)
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
	if err := p.tenants().Kill(ctx); err != nil {
		return err
	}
	for _, id := range ids {
		if err := p.tenants().Remove(ctx, id); err != nil {
			return err
		}
	}
	return errors.Join(host.Unpin(p.dir), host.RemoveShm(p.dir))
}

// tenants are the pod's containers in the worker.
func (p *pod) tenants() host.Tenants {
	return host.Tenants{Dir: p.dir, Namespace: p.namespace, Agent: p.backend.Worker.Agent}
}
