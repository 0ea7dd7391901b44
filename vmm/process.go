package vmm

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
)

// Process names a process for the time of a boot.
type Process struct {
	Pid   int    `json:"pid"`
	Start uint64 `json:"start"` // pidfd.StartTime
}

// proc is a process of a pod that is followed to its end.
type proc struct {
	Process
	file *os.File      // pidfd; closed after done
	done chan struct{} // closed when exit is known
	exit pidfd.Exit
}

// follow opens a process of this or an earlier daemon. ended is called once,
// after done is closed; it may be nil. A process that is gone is
// errdefs.ErrNotFound.
func follow(r *pidfd.Reaper, p Process, ended func(pidfd.Exit)) (*proc, error) {
	f, err := pidfd.Open(p.Pid, p.Start)
	if err != nil {
		return nil, err
	}
	q := &proc{Process: p, file: f, done: make(chan struct{})}
	err = r.Follow(f, func(e pidfd.Exit) {
		q.exit = e
		close(q.done)
		f.Close()
		if ended != nil {
			ended(e)
		}
	})
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return q, nil
}

// wait returns when the process has ended.
func (p *proc) wait(ctx context.Context) error {
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for process %d: %w", p.Pid, ctx.Err())
	}
}

// kill ends the process and returns when it is gone. Idempotent.
func (p *proc) kill(ctx context.Context) error {
	err := pidfd.Signal(p.file, unix.SIGKILL)
	select {
	case <-p.done:
		return nil // and its file is closed
	default:
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("kill process %d: %w", p.Pid, err)
	}
	return p.wait(ctx)
}
