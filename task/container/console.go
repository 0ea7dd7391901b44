package container

import (
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/runc/libcontainer/utils"
	"golang.org/x/sys/unix"
)

// console is the socket pair through which a container's first process sends
// the master of the terminal that it made in the container's devpts.
type console struct{ parent, child *os.File }

func newConsole() (*console, error) {
	parent, child, err := utils.NewSockPair("console")
	if err != nil {
		return nil, fmt.Errorf("make console socket: %w", err)
	}
	return &console{parent, child}, nil
}

// master is called once the process is set up: it was sent before that.
func (c *console) master() (*os.File, error) {
	data, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(int(c.parent.Fd()), data, oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil || len(fds) != 1 {
			continue
		}
		return os.NewFile(uintptr(fds[0]), string(data[:n])), nil
	}
	return nil, errors.New("receive terminal: no descriptor came")
}

func (c *console) Close() error { return errors.Join(c.parent.Close(), c.child.Close()) }
