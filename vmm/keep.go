package vmm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
)

// keeper keeps connections to vhost-device-vsock open until they are answered,
// whatever becomes of who made them. It needs that: when a guest accepts a
// connection whose other end was closed meanwhile, the thread that serves the
// guest panics (version 0.3.0, vsock_conn.rs, "OK" to a broken pipe), and nobody
// reaches the guest any more.
//
// A connection is kept as a message that nobody reads, in a pair of sockets that
// vhost-device-vsock has inherited and does not know of. So it is kept also from
// a daemon that is killed, and the next one finds the pair again; kuasar-ctl,
// which calls guests past the daemon, uses the same.
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

// openKeeper is findKeeper for who does not follow the process.
func openKeeper(p Process) (*keeper, error) {
	f, err := pidfd.Open(p.Pid, p.Start)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return findKeeper(f)
}

// findKeeper takes up the one of another daemon.
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

// kept is a connection and when it was put, by a clock that all processes share.
type kept struct {
	fd int
	at uint64 // nanoseconds of CLOCK_MONOTONIC
}

// put keeps a connection that is about to be made. If no more fit it is
// errdefs.ErrUnavailable: the guest has not answered for long.
func (k *keeper) put(c *net.UnixConn) (at uint64, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0, err
	}
	at = uint64(now.Nano())
	var sent error
	err = raw.Control(func(fd uintptr) {
		one := kept{int(fd), at}
		if sent = k.send(one); full(sent) {
			sent = errors.Join(k.sift(), k.send(one))
		}
	})
	if full(sent) {
		return 0, fmt.Errorf("it has not answered for long: %w: %w", sent, errdefs.ErrUnavailable)
	}
	return at, errors.Join(sent, err)
}

func full(err error) bool { return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ETOOMANYREFS) }

// drop gives up what was kept at that time and before. A guest answers in turn:
// it has answered whatever was asked before what it answers now. Another process
// may be waiting for what comes later.
func (k *keeper) drop(at uint64) error {
	return k.weed(func(c kept) bool { return c.at <= at })
}

// sift gives up what was answered.
func (k *keeper) sift() error {
	return k.weed(func(c kept) bool {
		n, _ := unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}, 0)
		return n != 0
	})
}

// weed gives up some of what is kept.
func (k *keeper) weed(out func(kept) bool) error {
	all, err := k.take()
	for _, c := range all {
		if !out(c) {
			err = errors.Join(err, k.send(c))
		}
		unix.Close(c.fd)
	}
	return err
}

func (k *keeper) send(c kept) error {
	return control(k.in, func(in int) error {
		stamp := binary.NativeEndian.AppendUint64(nil, c.at)
		return unix.Sendmsg(in, stamp, unix.UnixRights(c.fd), nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	})
}

// take returns all that is kept.
func (k *keeper) take() (all []kept, err error) {
	err = control(k.out, func(out int) error {
		rights := make([]byte, unix.CmsgSpace(4))
		for {
			var stamp [8]byte
			_, n, _, _, err := unix.Recvmsg(out, stamp[:], rights, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
			if err != nil {
				return err
			}
			for _, fd := range parseRights(rights[:n]) {
				all = append(all, kept{fd, binary.NativeEndian.Uint64(stamp[:])})
			}
		}
	})
	if errors.Is(err, unix.EAGAIN) {
		err = nil
	}
	return all, err
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
