package stdio

import (
	"golang.org/x/sys/unix"
)

// pump copies from one non-blocking descriptor to another. Only one goroutine
// uses it.
type pump struct {
	src, dst int  // dst -1 discards
	limit    int  // of bytes read at once
	splice   bool // dst is a pipe: bytes are never ours alone, to die with us

	// What was read and not written. There is room before we read, so this is
	// rare: only a terminal's input takes less than it has room for.
	pending []byte
	ended   bool  // src had nothing and nobody to write to it when last read
	lost    error // why bytes were lost
}

// pipeBuf is how much a pipe takes whole if it is ready for writing: PIPE_BUF
// of pipe(7).
const pipeBuf = 4096

// fairShare bounds what one pump moves before others have their turn.
const fairShare = 256 << 10

// move copies what can be copied now. moved is in bytes; more says that it
// stopped for the sake of others.
func (p *pump) move(buf []byte) (moved int, more bool) {
	for moved < fairShare {
		if len(p.pending) > 0 {
			if !p.flush() {
				return moved, false
			}
			continue
		}
		if !p.ready() {
			return moved, false
		}
		if p.splice {
			n, err := unix.Splice(p.src, nil, p.dst, nil, p.limit, unix.SPLICE_F_NONBLOCK)
			if err == nil && n > 0 {
				p.ended = false
				moved += int(n)
				continue
			}
			p.splice = err != unix.EINVAL // this kernel cannot splice from a terminal
		}
		n, err := read(p.src, buf[:min(p.limit, len(buf))])
		switch {
		case err == unix.EAGAIN:
			p.ended = false
			return moved, false
		case n <= 0: // EIO is a terminal that no process has open
			p.ended = true
			return moved, false
		}
		p.ended = false
		moved += n
		p.write(buf[:n])
	}
	return moved, true
}

// ready says whether there is something to read, or an end, and room for it.
// Bytes are safer where they are than in pending.
func (p *pump) ready() bool {
	fds := [2]unix.PollFd{{Fd: int32(p.src), Events: unix.POLLIN}, {Fd: int32(p.dst), Events: unix.POLLOUT}}
	for {
		_, err := unix.Poll(fds[:], 0)
		if err == unix.EINTR {
			continue
		}
		return err == nil && fds[0].Revents != 0 && (p.dst < 0 || fds[1].Revents != 0)
	}
}

// write takes over what was read from the buffer.
func (p *pump) write(b []byte) {
	if rest := p.put(b); len(rest) > 0 {
		p.pending = append(make([]byte, 0, len(rest)), rest...)
	}
}

// flush says whether nothing is pending any more.
func (p *pump) flush() bool {
	p.pending = p.put(p.pending)
	if len(p.pending) == 0 {
		p.pending = nil
		return true
	}
	return false
}

// put returns what dst did not take. What it never will is dropped: a process
// must not hang because its log cannot be written.
func (p *pump) put(b []byte) (rest []byte) {
	for len(b) > 0 && p.dst >= 0 {
		n, err := unix.Write(p.dst, b)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return b
		case err != nil:
			p.lost = err
			return nil
		default:
			b = b[n:]
		}
	}
	return nil
}

// idle says that all there is in src is in dst. It is exact for what a process
// wrote that has exited: to poll a terminal, the kernel first puts there what
// was written to the other side.
func (p *pump) idle() bool {
	return len(p.pending) == 0 && (p.ended || !readable(p.src))
}

func readable(fd int) bool {
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds[:], 0); err != unix.EINTR {
			return fds[0].Revents&unix.POLLIN != 0
		}
	}
}

func read(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Read(fd, b)
		if err != unix.EINTR {
			return n, err
		}
	}
}
