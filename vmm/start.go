package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
	"github.com/containerd-kuasar/containerd-kuasar/vmm/network"
)

var (
	fpShared = failpoint.New("vmm/start/shared")
	fpVMM    = failpoint.New("vmm/start/vmm")
	fpHello  = failpoint.New("vmm/start/hello")
	fpSetup  = failpoint.New("vmm/start/setup")
)

// undoTime bounds the cleaning up after something failed.
const undoTime = 10 * time.Second

// undoing is a context to clean up in: the caller may have given up, which is why
// there is something to undo.
func undoing(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.WithoutCancel(ctx), undoTime, errUndoing)
}

var errUndoing = fmt.Errorf("it was not undone within %v: %w", undoTime, context.DeadlineExceeded)

// Start implements sandbox.Sandbox.
func (p *pod) Start(ctx context.Context) error {
	err := p.start(ctx)
	if err == nil {
		p.mu.Lock()
		p.config, p.state.Started = nil, true
		p.mu.Unlock()
		return nil
	}
	return errors.Join(fmt.Errorf("start pod %s: %w", p.id, err), p.undo(ctx))
}

// boot runs the machine until its agent is ready. If it may be a clone, and there
// is a template, that is on trial: the caller passes it.
func (p *pod) boot(ctx context.Context, clone bool) (t *trial, err error) {
	if err := p.begin(ctx); err != nil {
		return nil, err
	}
	if err := p.accelerate(ctx); err != nil {
		return nil, err
	}
	c := p.machine()
	c.Launch = func(ctx context.Context, c Command) error { return p.launch(ctx, roleVMM, c) }
	c.Process = func() Process { return p.process(roleVMM) }
	console, err := newConsole()
	if err != nil {
		return nil, err
	}
	defer func() { console.close() }()
	c.Console = console.out
	within := p.opts.BootTimeout
	if clone {
		if t = p.template(ctx, c); t != nil {
			within /= cloneShare
		}
		if t != nil && t.spare != nil {
			console.close()
			console = t.spare.console
		}
	}
	if t != nil && t.spare != nil {
		err = p.takeSpare(ctx, t)
	} else {
		err = p.makeDir()
	}
	if err != nil {
		return t, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("the guest was not ready within %v (boot_timeout): raise that if this node is slow: %w", within, context.DeadlineExceeded))
	defer cancel()
	if err := p.assemble(ctx, c, t); err != nil {
		return t, fmt.Errorf("%w%s", err, console.tail())
	}
	return t, nil
}

// assemble runs the machine and all that it needs. What can be done at once is.
func (p *pod) assemble(ctx context.Context, c Config, t *trial) (err error) {
	ctx, span := trace.Start(ctx, t.way())
	defer span.End(&err)
	var l link
	defer l.close()
	defer func() { release(c.NICs) }()
	var interfaces []network.Interface
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		c.NICs, interfaces, err = p.join(gctx)
		return err
	})
	g.Go(func() error { return p.wire(gctx, &l) })
	g.Go(func() (err error) {
		c.Shares, err = p.share(gctx)
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	fpShared.Hit()
	c.Vsock = l.device
	vm, err := p.begun(ctx, c, t)
	if err != nil {
		return t.fault(err)
	}
	fpVMM.Hit()
	p.mu.Lock()
	p.control, p.transport = vm, l.transport
	p.mu.Unlock()
	if err := p.awake(ctx, l.hello, t); err != nil {
		return t.fault(fmt.Errorf("%w%s", err, p.tail(roleVMM)))
	}
	fpHello.Hit()
	if err := p.setup(ctx, interfaces); err != nil {
		return err
	}
	fpSetup.Hit()
	if t != nil {
		if err := p.settle(t); err != nil {
			return err
		}
	}
	p.mu.Lock()
	p.state.Network = interfaces
	p.mu.Unlock()
	p.offer()
	p.heed()
	return nil
}

// accelerate settles what auto means for this pod.
func (p *pod) accelerate(ctx context.Context) error {
	if p.opts.Accel != Auto {
		return nil
	}
	c := p.machine()
	c.Accel = TCG
	if prove := p.backend.Prove; prove != nil {
		if c.Accel = KVM; !prove(ctx, c) {
			c.Accel = TCG
		}
	}
	p.mu.Lock()
	p.state.Accel = c.Accel
	p.mu.Unlock()
	return nil
}

// greet waits for the agent to say that it listens. A pod that is over has
// nobody to wait for.
func (p *pod) greet(ctx context.Context, l net.Listener) error {
	heard := make(chan error, 1)
	go func() { heard <- hear(l) }()
	var err error
	select {
	case err = <-heard:
		return err
	case <-p.lost():
		err = fmt.Errorf("the machine ended before its agent was ready: are kernel = %q and initrd = %q a guest's of this release (make guest), and kernel_params right? %w", p.opts.Kernel, p.opts.Initrd, errdefs.ErrFailedPrecondition)
	case <-ctx.Done():
		err = fmt.Errorf("wait for the guest's agent: %w", context.Cause(ctx))
	}
	l.Close()
	<-heard
	return err
}

// tailSize bounds what an error quotes.
const tailSize = 1024

// tail quotes the end of a process's log.
func (p *pod) tail(role string) string { return tail(p.log(role)) }

// tail quotes the end of a process's log, which has its role's name.
func tail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	return quote(strings.TrimSuffix(filepath.Base(path), ".log"), f)
}

func quote(what string, f *os.File) string {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	b := make([]byte, min(end, tailSize))
	if _, err := f.ReadAt(b, end-int64(len(b))); err != nil || len(b) == 0 {
		return ""
	}
	return fmt.Sprintf("; %s says: %q", what, b)
}
