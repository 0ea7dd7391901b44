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

	exited  atomic.Bool
	after   int // bytes moved since exited was seen
	once    sync.Once
	drained chan struct{} // closed when all that the exited process wrote is copied, or copying has ended
	lost    error         // before drained is closed: why some was not
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

// inFlight is more than what an exited process can have left in a terminal
// (64 KiB and 4 KiB, in tty_buffer.c and n_tty.c) or a pipe (1 MiB, in
// fs.pipe-max-size): what comes after that is somebody else's.
const inFlight = 2 << 20

// step implements copier.
func (t *transfer) step(key uint64, buf []byte) {
	exited := t.exited.Load()
	moved, more := t.out.move(buf)
	if exited {
		t.after += moved
	}
	if exited && (t.out.idle() || t.after > inFlight) {
		t.finish()
	}
	if more {
		t.loop.rearm(t.out.src, key)
	}
	if t.in.src >= 0 {
		if _, more := t.in.move(buf); more {
			t.loop.rearm(t.in.src, key)
		}
	}
}

func (t *transfer) finish() {
	t.once.Do(func() {
		t.lost = t.out.lost
		close(t.drained)
	})
}

// over says whether drained is closed.
func (t *transfer) over() bool {
	select {
	case <-t.drained:
		return true
	default:
		return false
	}
}

// drain returns when what the exited process wrote is copied, or when ctx ends.
// Copying goes on in either case.
func (t *transfer) drain(ctx context.Context) error {
	t.exited.Store(true)
	t.loop.call(t.key)
	select {
	case <-t.drained:
		if t.lost != nil {
			return fmt.Errorf("copy output: some is lost: %w", t.lost)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("copy the rest of the output: %w", context.Cause(ctx))
	}
}

// stop ends copying. It returns the descriptor that was copied to, for the
// caller to close or to keep.
func (t *transfer) stop() (dst int) {
	t.loop.forget(t.key)
	t.finish()
	unix.Close(t.out.src)
	if t.in.src >= 0 {
		unix.Close(t.in.src)
	}
	return t.out.dst
}
