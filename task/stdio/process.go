package stdio

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/task/relay"
)

// process is the IO of one process on a Host. While an ordinary one runs it
// has three descriptors: the write end of stdin and the read ends of stdout
// and stderr.
type process struct {
	host     *Host
	terminal bool
	remote   bool
	late     bool // whoever reads its output may come later

	mu     sync.Mutex
	files  [3]*os.File // the process's, until it was started
	stdin  int         // write end of the FIFO, -1 after CloseStdin
	ends   [3]end      // of stdout and stderr, under their numbers
	exited bool
	closed bool

	// With a terminal. source and sink become the transfer's when the master
	// is attached.
	source, sink int // stdin's FIFO and where output goes, -1 if nowhere
	master       int
	copying      *transfer
}

// end is what the agent has of an output.
type end struct {
	reader   int       // read end of the FIFO, -1 if it is none
	watch    int32     // of what is kept after the exit, 0 if nothing is
	spool    string    // path of the FIFO before a log file
	transfer *transfer // to that file
	logger   *logger
	stream   *relay.Stream // to the FIFO, if output is retained
}

func newProcess(h *Host, cfg Config) *process {
	p := &process{host: h, terminal: cfg.Terminal, remote: cfg.Remote, stdin: -1, source: -1, sink: -1, master: -1}
	for i := range p.ends {
		p.ends[i].reader = -1
	}
	return p
}

// Files implements IO.
func (p *process) Files() (stdin, stdout, stderr *os.File) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.files[0], p.files[1], p.files[2]
}

// Started implements IO.
func (p *process) Started() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.started()
}

func (p *process) started() {
	for i, f := range p.files {
		if f != nil {
			_ = f.Close()
		}
		p.files[i] = nil
	}
}

// Attach implements IO.
func (p *process) Attach(master *os.File) error {
	defer master.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.terminal || p.closed || p.copying != nil {
		return fmt.Errorf("attach terminal: there is none to be, or it is attached or closed: %w", errdefs.ErrFailedPrecondition)
	}
	// A duplicate of our own: package os would poll the original.
	fd, err := unix.FcntlInt(master.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("attach terminal: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return fmt.Errorf("attach terminal: %w", err)
	}
	limit := pipeBuf
	if p.sink < 0 {
		limit = bufferSize
	}
	out := pump{src: fd, dst: p.sink, limit: limit, splice: p.sink >= 0 && isFIFO(p.sink)}
	in := pump{src: p.source, dst: fd, limit: pipeBuf}
	t, err := p.host.loop.transfer(out, in)
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("attach terminal: %w", err)
	}
	p.copying, p.master = t, fd
	p.source, p.sink = -1, -1
	return nil
}

// Resize implements IO.
func (p *process) Resize(width, height uint32) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.master < 0 {
		return fmt.Errorf("resize terminal: the process has none: %w", errdefs.ErrFailedPrecondition)
	}
	size := unix.Winsize{Col: clamp(width), Row: clamp(height)}
	if err := unix.IoctlSetWinsize(p.master, unix.TIOCSWINSZ, &size); err != nil {
		return fmt.Errorf("resize terminal to %dx%d: %w", width, height, err)
	}
	return nil
}

func clamp(n uint32) uint16 { return uint16(min(n, 1<<16-1)) }

// CloseStdin implements IO.
func (p *process) CloseStdin() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	closeFD(&p.stdin)
	return nil
}

// Exited implements IO.
func (p *process) Exited(ctx context.Context) error {
	p.mu.Lock()
	if p.closed || p.exited {
		p.mu.Unlock()
		return nil
	}
	p.exited = true
	p.started()
	closeFD(&p.stdin)
	terminal := p.copying
	var logs []*transfer
	for _, e := range p.ends {
		if e.transfer != nil {
			logs = append(logs, e.transfer) // they go on for descendants
		}
	}
	p.mu.Unlock()

	var errs []error
	for _, t := range logs {
		errs = append(errs, t.drain(ctx))
	}
	if terminal != nil {
		errs = append(errs, terminal.drain(ctx))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errors.Join(errs...)
	}
	if terminal != nil {
		if terminal.over() {
			errs = append(errs, p.detach(true))
		} else {
			go p.finish(terminal)
		}
	}
	return errors.Join(append(errs, p.keep())...)
}

// finish copies the rest for a reader that comes late, so that it sees an end:
// it may wait for that before it lets us Close.
func (p *process) finish(terminal *transfer) {
	<-terminal.drained
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		_ = p.detach(true) // Exited has told already that it is late
	}
}

// keep holds output that nobody has read yet.
func (p *process) keep() error {
	var errs []error
	for i := range p.ends {
		e := &p.ends[i]
		if e.reader < 0 || p.terminal || e.watch != 0 || empty(e.reader) {
			continue
		}
		w, err := reopen(e.reader, "FIFO", unix.O_WRONLY|unix.O_NONBLOCK)
		if err == nil {
			e.watch, err = p.host.kept.keep(w)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// detach ends the copying of a terminal. With keep, a FIFO is kept until it
// was read.
func (p *process) detach(keep bool) error {
	dst := p.copying.stop()
	p.copying, p.master = nil, -1
	if keep && dst >= 0 && isFIFO(dst) && p.ends[1].stream == nil {
		var err error
		p.ends[1].watch, err = p.host.kept.keep(dst)
		return err
	}
	closeFD(&dst)
	return nil
}

func isFIFO(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO
}

// Close implements IO. It waits for a logging program to take what it was
// given, 10 seconds at most.
func (p *process) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	p.started()
	for _, fd := range []*int{&p.stdin, &p.source, &p.sink} {
		closeFD(fd)
	}
	var err error
	if p.copying != nil {
		err = p.detach(false)
	}
	var loggers []*logger
	for i := range p.ends {
		e := &p.ends[i]
		closeFD(&e.reader)
		if e.transfer != nil {
			dst := e.transfer.stop()
			closeFD(&dst)
		}
		if e.watch != 0 {
			p.host.kept.drop(e.watch)
		}
		if e.spool != "" {
			err = errors.Join(err, unlink(e.spool))
		}
		if e.stream != nil {
			err = errors.Join(err, e.stream.Close())
		}
		if e.logger != nil {
			loggers = append(loggers, e.logger)
		}
	}
	p.mu.Unlock()
	for _, l := range loggers {
		err = errors.Join(err, l.finish())
	}
	return err
}

func unlink(name string) error {
	if err := unix.Unlink(name); err != nil && err != unix.ENOENT {
		return pathError("remove", name, err)
	}
	return nil
}
