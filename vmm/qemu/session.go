package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/digitalocean/go-qemu/qmp"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/vmm"
)

// session is a connection to QEMU's control socket while something is changed.
// It speaks go-qemu's QMP, but not through its SocketMonitor: that one has no
// deadlines, and a QEMU that hangs must not take the daemon with it.
type session struct {
	conn   *net.UnixConn
	bound  *io.LimitedReader
	in     *json.Decoder
	events []qmp.Event // not asked for yet
}

const (
	// sessionTime bounds a session whose caller would wait longer. The slowest
	// command waits for a guest to let a device go.
	sessionTime = 30 * time.Second

	// maxSession bounds what QEMU may say in a session, in bytes.
	maxSession = 4 << 20

	// maxEvents bounds the events that are kept.
	maxEvents = 256
)

// message is anything that QEMU says.
type message struct {
	qmp.Event
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Greeting json.RawMessage `json:"QMP"`
}

// open connects and returns when QEMU takes commands.
func open(ctx context.Context, path string) (*session, error) {
	c, err := vmm.Dial(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	s := newSession(c)
	if err := s.greet(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return s, nil
}

func newSession(c *net.UnixConn) *session {
	bound := &io.LimitedReader{R: c, N: maxSession}
	return &session{conn: c, bound: bound, in: json.NewDecoder(bound)}
}

func (s *session) greet(ctx context.Context) error {
	end, err := s.limit(ctx)
	if err != nil {
		return err
	}
	m, err := s.read()
	if err = end(err); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	if m.Greeting == nil {
		return fmt.Errorf("greeting: it is none of QEMU's: %w", errdefs.ErrUnknown)
	}
	return s.run(ctx, "qmp_capabilities", nil, nil)
}

// limit ends reads and writes with the context, or after sessionTime.
func (s *session) limit(ctx context.Context) (end func(error) error, err error) {
	if err := s.conn.SetDeadline(time.Now().Add(sessionTime)); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetDeadline(time.Unix(1, 0)) })
	return func(err error) error {
		stop()
		if cause := context.Cause(ctx); err != nil && cause != nil {
			return fmt.Errorf("%w: %w", cause, err)
		}
		return err
	}, nil
}

func (s *session) read() (message, error) {
	var m message
	err := s.in.Decode(&m)
	switch {
	case err != nil && s.bound.N == 0:
		return m, fmt.Errorf("QEMU says more than %d bytes: %w", maxSession, errdefs.ErrResourceExhausted)
	case errors.Is(err, io.EOF):
		return m, fmt.Errorf("QEMU has ended: %w", errdefs.ErrUnavailable)
	}
	return m, err
}

// run executes a command. files go with it, for getfd and add-fd. What QEMU
// refuses is errdefs.ErrNotFound where it says so, else ErrFailedPrecondition.
func (s *session) run(ctx context.Context, command string, args, reply any, files ...*os.File) error {
	end, err := s.limit(ctx)
	if err == nil {
		err = end(s.call(qmp.Command{Execute: command, Args: args}, reply, files))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return nil
}

func (s *session) call(c qmp.Command, reply any, files []*os.File) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := s.conn.WriteMsgUnix(append(b, '\n'), rights, nil); err != nil {
		return err
	}
	for {
		m, err := s.read()
		switch {
		case err != nil:
			return err
		case m.Error != nil && m.Error.Class == "DeviceNotFound":
			return fmt.Errorf("%.200s: %w", m.Error.Desc, errdefs.ErrNotFound)
		case m.Error != nil:
			return fmt.Errorf("%.200s: %w", m.Error.Desc, errdefs.ErrFailedPrecondition)
		case m.Return != nil && reply != nil:
			return json.Unmarshal(m.Return, reply)
		case m.Return != nil:
			return nil
		}
		s.keep(m.Event)
	}
}

func (s *session) keep(e qmp.Event) {
	if len(s.events) == maxEvents {
		s.events = slices.Delete(s.events, 0, 1)
	}
	s.events = append(s.events, e)
}

// await returns the next event that is sought.
func (s *session) await(ctx context.Context, sought func(qmp.Event) bool) (qmp.Event, error) {
	if i := slices.IndexFunc(s.events, sought); i >= 0 {
		e := s.events[i]
		s.events = slices.Delete(s.events, 0, i+1)
		return e, nil
	}
	s.events = nil
	end, err := s.limit(ctx)
	if err != nil {
		return qmp.Event{}, err
	}
	for {
		m, err := s.read()
		if err != nil {
			return qmp.Event{}, end(err)
		}
		if sought(m.Event) {
			return m.Event, end(nil)
		}
	}
}

func (s *session) close() error { return s.conn.Close() }
