package stdio

import (
	"context"
	"errors"
	"os"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/task/relay"
)

// Host is the Opener of an agent that shares a file system with containerd.
type Host struct {
	reaper *pidfd.Reaper
	loop   *loop
	kept   *kept
	relay  *relay.Relay
}

var _ Opener = (*Host)(nil)

// NewHost starts one. r sees to the exits of programs that log.
func NewHost(r *pidfd.Reaper) (*Host, error) {
	k, err := newKept()
	if err != nil {
		return nil, err
	}
	l, err := newLoop()
	if err != nil {
		return nil, errors.Join(err, k.close())
	}
	if _, err := l.add(k, k.inotify.Fd()); err != nil {
		return nil, errors.Join(err, l.close(), k.close())
	}
	re, err := relay.New()
	if err != nil {
		return nil, errors.Join(err, l.close(), k.close())
	}
	return &Host{reaper: r, loop: l, kept: k, relay: re}, nil
}

// Close stops copying and gives up what was kept. Close every IO before.
func (h *Host) Close() error { return errors.Join(h.loop.close(), h.kept.close(), h.relay.Close()) }

// Open implements Opener.
func (h *Host) Open(ctx context.Context, cfg Config) (IO, error) {
	p := newProcess(h, cfg)
	if err := p.open(ctx, cfg); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// Reopen implements Opener.
func (h *Host) Reopen(ctx context.Context, cfg Config, master *os.File) (IO, error) {
	p := newProcess(h, cfg)
	if err := p.reopen(ctx, cfg); err != nil {
		return nil, errors.Join(err, p.Close(), closeFile(master))
	}
	if master != nil && cfg.Terminal {
		if err := p.Attach(master); err != nil {
			return nil, errors.Join(err, p.Close())
		}
		return p, nil
	}
	return p, closeFile(master)
}

func closeFile(f *os.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}
