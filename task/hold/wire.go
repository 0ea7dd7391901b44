package hold

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

type message struct {
	Op  string `json:"op"`
	Key string `json:"key,omitempty"`
}

const (
	opHold = "hold" // with a descriptor
	opDrop = "drop"
	opDone = "done" // that was all
)

// maxMessage is in bytes. JSON makes at most six of one in a key.
const maxMessage = 4096

// wire is one end of a connection. One goroutine may send while another
// receives.
type wire struct{ conn *net.UnixConn }

// send sends m, with a descriptor unless fd is negative.
func (w wire) send(m message, fd int) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	_, _, err = w.conn.WriteMsgUnix(b, rights, nil)
	return err
}

// receive returns the next message; the descriptor that comes with opHold is
// the caller's, else it is negative. io.EOF is the end of the connection.
func (w wire) receive() (message, int, error) {
	var buf [maxMessage]byte
	var oob [64]byte // a few descriptors more than anybody may send
	n, oobn, flags, _, err := w.conn.ReadMsgUnix(buf[:], oob[:])
	if errors.Is(err, unix.ECONNRESET) {
		// The peer died and had not read all from us. That is told once, and
		// before what it has sent.
		n, oobn, flags, _, err = w.conn.ReadMsgUnix(buf[:], oob[:])
	}
	// At the end of the connection there may be descriptors, too; after other
	// errors the lengths are negative.
	fds, perr := descriptors(oob[:max(oobn, 0)])
	m, err := check(buf[:max(n, 0)], flags, len(fds), errors.Join(err, perr))
	if err != nil {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return message{}, -1, err
	}
	if len(fds) == 0 {
		return m, -1, nil
	}
	return m, fds[0], nil
}

// check parses what was received together with so many descriptors.
func check(b []byte, flags, fds int, err error) (message, error) {
	switch {
	case errors.Is(err, io.EOF):
		return message{}, io.EOF
	case err != nil:
		return message{}, err
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return message{}, fmt.Errorf("a descriptor did not arrive: out of file descriptors (RLIMIT_NOFILE), or too many were sent: %w", errdefs.ErrResourceExhausted)
	}
	if flags&unix.MSG_TRUNC != 0 {
		return message{}, fmt.Errorf("message of more than %d bytes: %w", maxMessage, errdefs.ErrInvalidArgument)
	}
	m, err := parse(b)
	if err != nil {
		return message{}, err
	}
	want := 0
	if m.Op == opHold {
		want = 1
	}
	if fds != want {
		return message{}, fmt.Errorf("%s came with %d descriptors, not %d: %w", m.Op, fds, want, errdefs.ErrInvalidArgument)
	}
	return m, nil
}

func parse(b []byte) (message, error) {
	var m message
	if err := json.Unmarshal(b, &m); err != nil {
		return message{}, fmt.Errorf("message %.80q: %w: %w", b, err, errdefs.ErrInvalidArgument)
	}
	switch m.Op {
	case opDone:
		return m, nil
	case opHold, opDrop:
		return m, checkKey(m.Key)
	}
	return message{}, fmt.Errorf("message %.80q has an unknown op: %w", b, errdefs.ErrInvalidArgument)
}

// descriptors takes all that came in control messages.
func descriptors(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control message: %w", err)
	}
	var all []int
	for _, m := range list {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return all, fmt.Errorf("parse descriptors: %w", err)
		}
		all = append(all, fds...)
	}
	return all, nil
}
