package stdio

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// transfer is the copying for one process: of its terminal in both directions,
// or of its output into a file. It owns the descriptors of its pumps.
type transfer struct {
	loop    *loop
	key     uint64
	out, in pump // without an input, src of in is -1

	exited  atomic.Bool // the process is gone
	hurried atomic.Bool // do not wait for others that may write
	once    sync.Once
	drained chan struct{} // closed when all that the exited process wrote is copied, or copying is over
}

func (l *loop) transfer(out, in pump) (*transfer, error) {
	t := &transfer{loop: l, out: out, in: in, drained: make(chan struct{})}
	fds := []int{out.src, out.dst}
	if in.src >= 0 {
		fds = append(fds, in.src) // its dst is out's src
	}
	var err error
	if t.key, err = l.add(t, fds...); err != nil {
		return nil, fmt.Errorf("copy stdio: %w", err)
	}
	return t, nil
}

// step implements copier.
func (t *transfer) step(key uint64, buf []byte) {
	if t.out.move(buf) {
		t.loop.rearm(t.out.src, key)
	}
	if t.in.src >= 0 && t.in.move(buf) {
		t.loop.rearm(t.in.src, key)
	}
	if t.exited.Load() && t.out.idle(t.hurried.Load()) {
		t.over()
	}
}

func (t *transfer) over() { t.once.Do(func() { close(t.drained) }) }

// drain returns when what the process wrote until now is copied and nothing
// more can come, or when ctx ends.
func (t *transfer) drain(ctx context.Context) error {
	t.exited.Store(true)
	t.loop.rearm(t.out.src, t.key)
	select {
	case <-t.drained:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("copy the rest of the output: %w", context.Cause(ctx))
	}
}

// hurry makes drained come with the next moment that there is nothing to copy.
func (t *transfer) hurry() {
	t.hurried.Store(true)
	t.loop.rearm(t.out.src, t.key)
}

// stop ends copying. It returns the descriptor that was copied to, for the
// caller to close or to keep, and why output was lost.
func (t *transfer) stop() (dst int, lost error) {
	t.loop.forget(t.key)
	t.over()
	unix.Close(t.out.src)
	if t.in.src >= 0 {
		unix.Close(t.in.src)
	}
	return t.out.dst, t.out.lost
}
