package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/task/stdio"
)

// requestTime bounds how long a connection may take to say what it is for.
const requestTime = 5 * time.Second

// Guest is the stdio.Opener of a guest's agent. What a Config names are things
// of the host's: here they only say that the process has such a stream.
type Guest struct {
	stdio stdio.Opener
	dir   string // of FIFOs, while they are opened

	mu   sync.Mutex
	ends map[string]end // by name
}

var _ stdio.Opener = (*Guest)(nil)

// end is the guest's end of a stream.
type end interface {
	// attach answers the request of a host that is at a place of the stream, and
	// returns when the connection has ended.
	attach(c net.Conn, at uint64)
	close() error
}

// NewGuest makes one that opens FIFOs with s. dir is its own.
func NewGuest(s stdio.Opener, dir string) (*Guest, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return &Guest{stdio: s, dir: dir, ends: map[string]end{}}, nil
}

// Serve takes the host's connections. It returns when l fails.
func (g *Guest) Serve(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return fmt.Errorf("accept connections for streams: %w", err)
		}
		go g.serve(c)
	}
}

func (g *Guest) serve(c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(requestTime))
	name, at, err := readRequest(c)
	if err != nil {
		log.L.WithError(err).Warn("connection for a stream does not say which")
		return
	}
	g.mu.Lock()
	e := g.ends[name]
	g.mu.Unlock()
	if e == nil {
		_ = writeAnswer(c, answerNo, 0)
		return
	}
	_ = c.SetDeadline(time.Time{})
	e.attach(c, at)
}

// Reopen implements stdio.Opener. All of a guest's agent ends with it.
func (g *Guest) Reopen(context.Context, stdio.Config, *os.File) (stdio.IO, error) {
	return nil, fmt.Errorf("reopen stdio in a guest: %w", errdefs.ErrNotImplemented)
}

// Open implements stdio.Opener. It waits for nobody: output is kept until the
// host comes.
func (g *Guest) Open(ctx context.Context, cfg stdio.Config) (stdio.IO, error) {
	p := &process{guest: g}
	if err := p.open(ctx, cfg); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// process is the IO of one of the guest's processes.
type process struct {
	stdio.IO
	guest *Guest
	names [kinds]string // of its streams, empty where there is none

	mu     sync.Mutex
	ends   [kinds]end
	exited bool
}

// fifos are those of a process while they are opened.
type fifos struct {
	paths   [kinds]string
	readers [kinds]*os.File
}

// clear removes the names, which nobody needs but who opens them, and what was
// not taken over.
func (f *fifos) clear() {
	for k := range kinds {
		if f.paths[k] != "" {
			_ = os.Remove(f.paths[k])
		}
		if f.readers[k] != nil {
			f.readers[k].Close()
		}
	}
}

func (p *process) open(ctx context.Context, cfg stdio.Config) error {
	var f fifos
	defer f.clear()
	local, err := p.make(&f, cfg)
	if err != nil {
		return err
	}
	if p.IO, err = p.guest.stdio.Open(ctx, local); err != nil {
		p.IO = nil
		return err
	}
	if path := f.paths[stdin]; path != "" {
		w, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		p.ends[stdin] = &input{file: w}
	}
	for k := stdout; k < kinds; k++ {
		r := f.readers[k]
		if r == nil {
			continue
		}
		f.readers[k] = nil
		o, err := newOutput(r, cfg.Retain)
		if err != nil {
			return err
		}
		p.ends[k] = o
		go o.run() // not before the process's end is open: there would be no writer
	}
	return p.publish()
}

// make makes the FIFOs of a process, and returns cfg with them in it.
func (p *process) make(f *fifos, cfg stdio.Config) (stdio.Config, error) {
	local := cfg
	local.Retain = false
	for k, given := range [kinds]*string{&local.Stdin, &local.Stdout, &local.Stderr} {
		k := kind(k)
		switch {
		case *given == "", k == stderr && cfg.Terminal:
			continue
		case k == stderr && cfg.Stderr == cfg.Stdout:
			*given = local.Stdout
			continue
		}
		p.names[k] = name(cfg.Namespace, cfg.Container, cfg.Exec, k)
		path, err := p.guest.fifo(cfg.Container + ":" + cfg.Exec + ":" + k.String())
		if err != nil {
			return cfg, err
		}
		*given, f.paths[k] = path, path
		if k == stdin {
			continue
		}
		if f.readers[k], err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
			return cfg, err
		}
	}
	return local, nil
}

func (g *Guest) fifo(name string) (string, error) {
	path := filepath.Join(g.dir, name)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return "", &os.PathError{Op: "make FIFO", Path: path, Err: err}
	}
	return path, nil
}

// publish lets the host find the process's streams.
func (p *process) publish() error {
	g := p.guest
	g.mu.Lock()
	defer g.mu.Unlock()
	for k, e := range p.ends {
		if e == nil {
			continue
		}
		if g.ends[p.names[k]] != nil {
			return fmt.Errorf("stream %s: %w", p.names[k], errdefs.ErrAlreadyExists)
		}
		g.ends[p.names[k]] = e
	}
	return nil
}

// Exited implements stdio.IO.
func (p *process) Exited(ctx context.Context) error {
	p.mu.Lock()
	p.exited = true
	p.mu.Unlock()
	return p.IO.Exited(ctx)
}

// Retained returns the newest output of a process whose Config said Retain, and
// what was not delivered yet. A connection that begins at its end says that it
// was.
func (p *process) Retained() (*api.RetainedResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out [kinds]*api.Output
	for k, e := range p.ends {
		o, ok := e.(*output)
		if !ok {
			continue
		}
		kept, err := o.retained(p.exited)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", kind(k), err)
		}
		out[k] = kept
	}
	return &api.RetainedResponse{Stdout: out[stdout], Stderr: out[stderr], Ended: p.exited}, nil
}

// Close implements stdio.IO. What was not delivered is lost.
func (p *process) Close() error {
	p.mu.Lock()
	ends := p.ends
	p.ends = [kinds]end{}
	p.mu.Unlock()
	var errs []error
	p.guest.mu.Lock()
	for k, e := range ends {
		if e != nil && p.guest.ends[p.names[k]] == e {
			delete(p.guest.ends, p.names[k])
		}
	}
	p.guest.mu.Unlock()
	if p.IO != nil {
		errs = append(errs, p.IO.Close())
	}
	for _, e := range ends {
		if e != nil {
			errs = append(errs, e.close())
		}
	}
	return errors.Join(errs...)
}
