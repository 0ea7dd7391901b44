package vmm

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// keeper keeps connections to vhost-device-vsock open until they are answered,
// whatever becomes of who made them. It needs that: when a guest accepts a
// connection whose other end was closed meanwhile, the thread that serves the
// guest panics (version 0.3.0, vsock_conn.rs, "OK" to a broken pipe), and nobody
// reaches the guest any more.
//
// A connection is kept as a message that nobody reads, in a pair of sockets that
// vhost-device-vsock has inherited and does not know of. So it is kept also from
// a daemon that is killed, and the next one finds the pair again.
type keeper struct {
	in, out *os.File
	turn    chan struct{} // holds a token while there is a handshake
}

// keeperFD is the first of the pair's descriptors in vhost-device-vsock.
const keeperFD = 3

func newKeeper() (*keeper, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a keeper of connections: %w", err)
	}
	return keeperOf(fds[0], fds[1]), nil
}

func keeperOf(in, out int) *keeper {
	return &keeper{os.NewFile(uintptr(in), "keeper"), os.NewFile(uintptr(out), "keeper"), make(chan struct{}, 1)}
}

// findKeeper takes up the one of an earlier daemon.
func findKeeper(process *os.File) (*keeper, error) {
	var fds [2]int
	for i := range fds {
		fd, err := unix.PidfdGetfd(int(process.Fd()), keeperFD+i, 0)
		if err != nil {
			if i > 0 {
				unix.Close(fds[0])
			}
			return nil, fmt.Errorf("find the keeper of connections: %w", err)
		}
		unix.CloseOnExec(fd)
		fds[i] = fd
	}
	return keeperOf(fds[0], fds[1]), nil
}

// files are for the process that has the pair, too.
func (k *keeper) files() []*os.File { return []*os.File{k.in, k.out} }

// put keeps a connection that is about to be made. If no more fit it is
// errdefs.ErrUnavailable: the guest has not answered for long.
func (k *keeper) put(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) {
		if sent = k.send(int(fd)); full(sent) {
			sent = errors.Join(k.sift(), k.send(int(fd)))
		}
	})
	if full(sent) {
		return fmt.Errorf("it has not answered for long: %w: %w", sent, errdefs.ErrUnavailable)
	}
	return errors.Join(sent, err)
}

func full(err error) bool { return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ETOOMANYREFS) }

// drop gives up all that is kept. A guest answers in turn: it has answered
// whatever was asked before what it answers now.
func (k *keeper) drop() error {
	fds, err := k.take()
	for _, fd := range fds {
		unix.Close(fd)
	}
	return err
}

// sift gives up what was answered.
func (k *keeper) sift() error {
	fds, err := k.take()
	for _, fd := range fds {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, _ := unix.Poll(poll, 0); n == 0 {
			err = errors.Join(err, k.send(fd))
		}
		unix.Close(fd)
	}
	return err
}

func (k *keeper) send(fd int) error {
	return control(k.in, func(in int) error {
		return unix.Sendmsg(in, []byte{0}, unix.UnixRights(fd), nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	})
}

// take returns all that is kept.
func (k *keeper) take() (fds []int, err error) {
	err = control(k.out, func(out int) error {
		rights, b := make([]byte, unix.CmsgSpace(4)), make([]byte, 1)
		for {
			_, n, _, _, err := unix.Recvmsg(out, b, rights, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
			if err != nil {
				return err
			}
			fds = append(fds, parseRights(rights[:n])...)
		}
	})
	if errors.Is(err, unix.EAGAIN) {
		err = nil
	}
	return fds, err
}

func parseRights(b []byte) (fds []int) {
	messages, _ := unix.ParseSocketControlMessage(b)
	for i := range messages {
		some, _ := unix.ParseUnixRights(&messages[i])
		fds = append(fds, some...)
	}
	return fds
}

// control calls f with the descriptor of a file that nobody closes meanwhile.
func control(file *os.File, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = f(int(fd)) }); err != nil {
		return err
	}
	return failed
}

func (k *keeper) close() error { return errors.Join(k.in.Close(), k.out.Close()) }
