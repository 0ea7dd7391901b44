package vmm

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
)

var fpUndone = failpoint.New("vmm/template/undone")

// trial is the start of a pod as a clone. Until it has succeeded, the end of one
// of the pod's processes is the trial's and not the pod's, which may boot yet.
type trial struct {
	from    *saved
	spare   *spare        // the machine, if it comes from the pool
	failed  chan struct{} // closed when a process has ended
	settled bool          // guarded by pod.mu: the processes are the pod's
	faulty  bool          // the machine failed before it was told of the pod
}

// fault is what a machine failed of by itself. t may be nil.
func (t *trial) fault(err error) error {
	if t != nil {
		t.faulty = true
	}
	return err
}

// cloneShare of boot_timeout is what a clone has to be ready: it takes a small
// part of a boot.
const cloneShare = 4

// template says whether the machine is to be cloned: then it is on trial from
// here.
func (p *pod) template(ctx context.Context, c Config) *trial {
	store := p.backend.Templates
	d, ok := p.driver.(Templater)
	if !ok || store == nil || !p.opts.Templates {
		return nil
	}
	ctx, span := trace.Start(ctx, "vmm.template")
	defer span.End(nil)
	s, err := newShape(d, c)
	if err != nil {
		return nil // a machine that boots says the same
	}
	if p.pooled {
		store.pool.want(s, p.opts.Pool, p.opts.BootTimeout)
	}
	from := store.take(ctx, s, p.opts.BootTimeout)
	t := &trial{from: from, failed: make(chan struct{})}
	if p.pooled {
		t.spare = store.pool.take(s.id, from)
	}
	if from == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trial = t
	return t
}

// begun starts the machine, one way or the other.
func (p *pod) begun(ctx context.Context, c Config, t *trial) (_ VM, err error) {
	ctx, span := trace.Start(ctx, "vmm.machine")
	defer span.End(&err)
	if t == nil {
		return p.driver.Start(ctx, c)
	}
	d := p.driver.(Templater)
	if t.spare == nil {
		err = d.Load(ctx, c, t.from.dir)
	}
	var vm VM
	if err == nil {
		vm, err = d.Resume(ctx, c)
	}
	if err != nil {
		err = fmt.Errorf("%w%s", err, p.tail(roleVMM))
	}
	return vm, err
}

// settle ends a trial that has succeeded.
func (p *pod) settle(t *trial) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-t.failed:
		return errTrial
	default:
		t.settled, p.trial, p.state.Template = true, nil, t.from.key
		return nil
	}
}

var errTrial = fmt.Errorf("the machine or one of its helpers ended: %w", errdefs.ErrFailedPrecondition)

// ended is told of the end of a process that was launched in t, which is nil if
// it was in none. That may be late: what there is by then is the next start's.
func (p *pod) ended(t *trial, role string, e pidfd.Exit) {
	p.mu.Lock()
	if t == nil || t.settled {
		p.mu.Unlock()
		p.died(role, e)
		return
	}
	select {
	case <-t.failed:
	default:
		close(t.failed)
	}
	var rest map[string]*proc
	if p.trial == t {
		rest = maps.Clone(p.procs)
	}
	p.mu.Unlock()
	slay(rest)
}

// lost is closed when the start cannot succeed any more.
func (p *pod) lost() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.trial != nil {
		return p.trial.failed
	}
	return p.over
}

// start runs the machine. A clone that fails is undone, and boots. That is its
// template's fault if the machine failed by itself, or if the pod does boot:
// what fails of both is what the pod asks for, and other pods do not.
func (p *pod) start(ctx context.Context) error {
	t, err := p.boot(ctx, true)
	if t == nil {
		return err
	}
	store := p.backend.Templates
	defer store.pool.refill()
	defer store.pass(t.from)
	if err == nil {
		return nil
	}
	cause := fmt.Errorf("pod %s: %w", p.id, err)
	fair := ctx.Err() == nil && !errdefs.IsNotImplemented(err) // else the template is good for others
	if t.spare != nil {                                        // of the template that says little: the next pod is cloned
		fair = false
		store.pool.blame(t.spare, cause)
	}
	if fair && t.faulty {
		store.broken(t.from, cause)
	}
	if err := p.again(ctx, err); err != nil {
		return err
	}
	fpUndone.Hit()
	_, err = p.boot(ctx, false)
	if fair && err == nil {
		store.broken(t.from, cause)
	}
	return err
}

// again makes a pod whose clone failed ready to boot.
func (p *pod) again(ctx context.Context, err error) error {
	undo := p.undo(ctx)
	p.mu.Lock()
	p.trial, p.control, p.transport = nil, nil, nil
	p.mu.Unlock()
	if undo != nil || ctx.Err() != nil {
		p.end(unknown())
		return errors.Join(err, undo)
	}
	p.mu.Lock()
	p.procs, p.state.Processes, p.state.CID = map[string]*proc{}, map[string]Process{}, 0
	p.mu.Unlock()
	return p.saved(ctx)
}

// undo leaves nothing of a start but files and directories.
func (p *pod) undo(ctx context.Context) error {
	ctx, cancel := undoing(ctx)
	defer cancel()
	return errors.Join(p.clear(ctx), p.removeShare(), p.removeDir())
}
