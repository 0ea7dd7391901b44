package stream

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// output is the guest's end of a process's output.
type output struct {
	file *os.File // read end of the FIFO, non-blocking
	raw  syscall.RawConn

	mu      sync.Mutex
	changed sync.Cond // any of these
	log     backlog
	ended   bool     // the FIFO has, and all of it is in log
	conn    net.Conn // that has the stream now
}

// newOutput takes over the read end of a FIFO that has a writer.
func newOutput(file *os.File, retain bool) (*output, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	o := &output{file: file, raw: raw}
	o.changed.L = &o.mu
	if retain {
		o.log.keep = keep
	}
	return o, nil
}

// run reads the FIFO to its end.
func (o *output) run() {
	for {
		o.mu.Lock()
		for o.log.room() == 0 && !o.ended {
			o.changed.Wait()
		}
		ended := o.ended
		o.mu.Unlock()
		if ended {
			return
		}
		// Waits without a buffer, and with nothing locked, until there is output.
		if err := o.raw.Read(o.fill); err != nil {
			o.end()
		}
	}
}

// fill adds what the FIFO holds, as far as there is room. It returns false if
// that is nothing yet.
func (o *output) fill(fd uintptr) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := min(o.log.room(), dataSize)
	return o.ended || n == 0 || o.read(int(fd), n) != 0
}

// read adds up to n bytes of the FIFO. It returns how many, 0 if it has none
// now, and -1 at the end.
func (o *output) read(fd, n int) int {
	var err error
	got := o.log.grow(n, func(b []byte) (n int) {
		n, err = unix.Read(fd, b)
		return max(n, 0)
	})
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return 0
	case got == 0:
		o.ended = true
		got = -1
	}
	o.changed.Broadcast()
	return got
}

func (o *output) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	o.changed.Broadcast()
}

// attach serves a connection until the stream ends, or another one comes.
func (o *output) attach(c net.Conn, at uint64) {
	o.mu.Lock()
	if o.conn != nil {
		o.conn.Close()
	}
	o.conn = c
	o.log.delivered(at)
	offset := o.log.done
	o.mu.Unlock()
	go o.count(c, offset)
	if writeAnswer(c, answerYes, offset) != nil || o.send(c, offset) != nil {
		return
	}
	// The host closes when it has all; before that, what is on its way could
	// get lost.
	_ = o.wait(c)
}

// count takes the host's counts until the connection ends.
func (o *output) count(c net.Conn, offset uint64) {
	for {
		n, err := readCount(c)
		o.mu.Lock()
		if err != nil || o.conn != c {
			if o.conn == c {
				o.conn = nil
			}
			o.changed.Broadcast()
			o.mu.Unlock()
			return
		}
		offset += uint64(n)
		o.log.delivered(offset)
		o.changed.Broadcast()
		o.mu.Unlock()
	}
}

// wait returns when the connection has ended.
func (o *output) wait(c net.Conn) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.conn == c {
		o.changed.Wait()
	}
	return io.EOF
}

// send sends from an offset on.
func (o *output) send(c net.Conn, offset uint64) error {
	for {
		if err := o.await(c, offset); err != nil {
			return err
		}
		n, err := o.frame(c, offset)
		if err != nil || n == 0 {
			return err
		}
		offset += uint64(n)
	}
}

// await waits for output at the offset, or the end.
func (o *output) await(c net.Conn, offset uint64) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.conn == c && o.log.end() <= offset && !o.ended {
		o.changed.Wait()
	}
	if o.conn != c {
		return io.EOF
	}
	return nil
}

// frame sends one frame, and returns how much was in it.
func (o *output) frame(c net.Conn, offset uint64) (int, error) {
	b := frames.Get().(*[frameSize]byte)
	defer frames.Put(b)
	o.mu.Lock()
	if offset < o.log.start { // another connection has delivered it meanwhile
		o.mu.Unlock()
		return 0, io.EOF
	}
	n := o.log.from(offset, b[headSize:])
	o.mu.Unlock()
	return n, writeFrame(c, b, n)
}

// retained is all output there is. Of a process that has exited that includes
// what is in the FIFO: nobody will come to read that. It counts as delivered when
// the host says so.
func (o *output) retained(exited bool) (kept *api.Output, err error) {
	err = o.raw.Control(func(fd uintptr) {
		o.mu.Lock()
		defer o.mu.Unlock()
		for exited && !o.ended && o.read(int(fd), dataSize) > 0 {
		}
		data, complete := o.log.all()
		kept = &api.Output{Data: data, Complete: complete, End: o.log.end()}
		if o.conn != nil { // of a daemon that is gone
			o.conn.Close()
			o.conn = nil
		}
		o.changed.Broadcast()
	})
	return kept, err
}

// close gives up what was not delivered.
func (o *output) close() error {
	o.mu.Lock()
	o.ended = true
	if o.conn != nil {
		o.conn.Close()
		o.conn = nil
	}
	o.changed.Broadcast()
	o.mu.Unlock()
	return o.file.Close()
}
