package vmm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
)

// link is both ends of a guest's vsock while the machine is started.
type link struct {
	device    Vsock
	transport transport
	hello     net.Listener
}

// close closes what a machine that runs has its own of.
func (l *link) close() {
	for _, f := range []*os.File{l.device.Vhost, l.device.User} {
		if f != nil {
			f.Close()
		}
	}
	if l.hello != nil {
		l.hello.Close()
	}
}

// wire makes the guest's vsock, and listens for its hello. The caller closes l,
// also on error.
func (p *pod) wire(ctx context.Context, l *link) (err error) {
	ctx, span := trace.Start(ctx, "vmm.vsock")
	defer span.End(&err)
	if p.driver.Needs().Vsock && p.opts.byKernel() {
		return p.claim(ctx, l)
	}
	// All that says hello to a guest's own socket is that guest.
	h := hybrid{path: p.socket(socketVsock)}
	if l.hello, err = h.Listen(helloPort); err != nil {
		return fmt.Errorf("listen for the guest's agent: %w", err)
	}
	if err := p.give(socketVsock + "_" + decimal(helloPort)); err != nil {
		return err
	}
	l.device.CID = hybridCID
	if !p.driver.Needs().Vsock {
		l.transport, l.device.Path = h, socketVsock
		return nil
	}
	if h.keep, err = newKeeper(); err != nil {
		return err
	}
	p.hold(h.keep)
	l.transport = h
	l.device.User, err = p.vsockDaemon(ctx, h.keep)
	return err
}

// hold keeps a keeper until clear.
func (p *pod) hold(k *keeper) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keeper = k
}

// byKernel says whether the kernel is to serve guests' vsock.
func (o Options) byKernel() bool {
	if o.Vsock != AutoVsock {
		return o.Vsock == VhostVsock
	}
	_, err := os.Stat(vhostVsock)
	return err == nil
}

// claim makes the kernel's vsock device.
func (p *pod) claim(ctx context.Context, l *link) (err error) {
	if l.device.Vhost, l.device.CID, err = claim(); err != nil {
		return err
	}
	p.mu.Lock()
	p.state.CID = l.device.CID
	p.mu.Unlock()
	if err := p.saved(ctx); err != nil {
		return err
	}
	v := vhost{l.device.CID, &p.backend.hub}
	l.transport = v
	l.hello, err = v.Listen(helloPort)
	return err
}

// link is the way to the guest of a machine that runs.
func (p *pod) link() transport {
	if p.state.CID != 0 {
		return vhost{p.state.CID, &p.backend.hub}
	}
	h := hybrid{path: p.socket(socketVsock)}
	if q := p.living()[roleVsock]; q != nil {
		var err error
		if h.keep, err = findKeeper(q.file); err != nil {
			log.L.WithError(err).WithField("sandbox", p.id).Warn("the guest is lost if this daemon dies while it calls it")
			return h
		}
		p.hold(h.keep)
	}
	return h
}

// hybridCID is the guest's context id where vsock is hybrid: there is but one
// guest on each.
const hybridCID = 3

// vsockDaemons are where vhost-device-vsock is looked for beside PATH.
var vsockDaemons = []string{"/usr/libexec/vhost-device-vsock", "/usr/lib/kuasar/vhost-device-vsock"}

func (o Options) vhostDeviceVsock() (string, error) {
	program, err := find("vhost-device-vsock", o.VsockPath, vsockDaemons...)
	if err != nil {
		return "", fmt.Errorf("%w: install vhost-device-vsock", err)
	}
	return program, nil
}

// vsockDaemon runs the daemon that serves the guest's vsock device, and connects
// to it for the VMM.
func (p *pod) vsockDaemon(ctx context.Context, k *keeper) (*os.File, error) {
	program, err := p.opts.vhostDeviceVsock()
	if err != nil {
		return nil, err
	}
	for _, name := range []string{socketUser, socketVsock} {
		if err := os.Remove(p.socket(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	err = p.launch(ctx, roleVsock, Command{Args: []string{
		program, "--guest-cid", decimal(hybridCID), "--socket", socketUser, "--uds-path", socketVsock,
	}, Files: k.files()})
	if err != nil {
		return nil, err
	}
	return p.reach(ctx, roleVsock, p.socket(socketUser))
}

// reachTime is how often a daemon's socket is tried.
const reachTime = time.Millisecond

// reach connects to the socket of one of the pod's processes, which makes it
// itself. It tries again and again: listen(2) is no event that one could wait
// for, and this takes the few milliseconds in which the process begins.
func (p *pod) reach(ctx context.Context, role, path string) (*os.File, error) {
	again := time.NewTicker(reachTime)
	defer again.Stop()
	for {
		c, err := Dial(ctx, path)
		if err == nil {
			defer c.Close()
			return c.File()
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) {
			return nil, err
		}
		select {
		case <-again.C:
		case <-p.lost():
			return nil, fmt.Errorf("%s ended before it listened: %w%s", role, errdefs.ErrFailedPrecondition, p.tail(role))
		case <-ctx.Done():
			return nil, fmt.Errorf("%s does not listen at %s: %w", role, path, context.Cause(ctx))
		}
	}
}

// find returns the path of a program: given, or from PATH or one of others.
func find(name, given string, others ...string) (string, error) {
	if given != "" {
		others = []string{given}
	} else if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, path := range others {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is neither in PATH nor at %s: %w", name, list(others), errdefs.ErrUnavailable)
}
