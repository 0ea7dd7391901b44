package tasks

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// A guest may stall, by itself or because its VMM does. Nothing is done about
// that before somebody wants something of it: it cannot be told from one that
// has much to do, and it may go on. But nobody waits for it without end.
const (
	// guestTime bounds a call of a guest's agent. It is as long as a guest may
	// take to boot.
	guestTime = time.Minute

	// reachTime bounds what of that it takes to reach the agent.
	reachTime = 10 * time.Second

	// killTime bounds a signal to a guest's process. One that is emulated on a busy
	// host takes seconds, and the kubelet waits two minutes.
	killTime = 20 * time.Second

	// statsTime bounds the stats of a guest's container: all those of the node are
	// read one after the other, each second. That is why they are not asked for
	// again for muteTime if they did not come.
	statsTime = 2 * time.Second
	muteTime  = 10 * time.Second
)

// errStalled is the cause of contexts that end because a guest does not answer.
var errStalled = fmt.Errorf("the guest does not answer: %w", errdefs.ErrUnavailable)

// patient is a context for calls of the task's agent. Only guests are not waited
// for as long as the caller wants to.
func (t *Task) patient(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if !t.streams() {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, limit, errStalled)
}

// stalled gives an error its cause if that is the guest.
func stalled(ctx context.Context, err error) error {
	if err == nil || !errors.Is(context.Cause(ctx), errStalled) || errors.Is(err, errStalled) {
		return err
	}
	return fmt.Errorf("%w (%w)", errStalled, err)
}

// insist ends the sandbox of a first process that was to be killed, but whose
// guest did not answer that.
func (p *process) insist(ctx context.Context, signal uint32, err error) error {
	if err == nil || signal != uint32(unix.SIGKILL) || p.exec != "" || !p.task.streams() || !errdefs.IsUnavailable(err) || ctx.Err() != nil {
		return err
	}
	log.G(ctx).WithError(err).WithField("sandbox", p.task.pod).WithField("id", p.task.key.id).
		Warn("a container is to be killed and its guest does not do it: the whole pod ends")
	return p.task.sandbox.Kill(ctx)
}

// muted says whether a pod's guest did not answer a moment ago.
func (r *Runtime) muted(pod string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Now().Before(r.mute[pod])
}

// setMute takes note of whether it did.
func (r *Runtime) setMute(pod string, answers bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.mute, pod)
	if answers {
		return
	}
	for other, until := range r.mute { // of pods that are gone, too
		if time.Now().After(until) {
			delete(r.mute, other)
		}
	}
	r.mute[pod] = time.Now().Add(muteTime)
}
