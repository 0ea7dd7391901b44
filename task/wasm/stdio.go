package wasm

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/task/server"
)

// streams are a process's stdio: a terminal's slave, or what the server opened.
type streams struct {
	files [3]*os.File
	slave *os.File
}

// terminal makes one if the process wants it; master is the caller's then.
func terminal(p server.Process) (s streams, master *os.File, err error) {
	if !p.Terminal {
		return streams{files: [3]*os.File{p.Stdin, p.Stdout, p.Stderr}}, nil, nil
	}
	if master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return s, nil, fmt.Errorf("make terminal: %w", err)
	}
	if s.slave, err = peer(master); err != nil {
		master.Close()
		return s, nil, fmt.Errorf("make terminal: %w", err)
	}
	s.files = [3]*os.File{s.slave, s.slave, s.slave}
	return s, master, nil
}

// peer opens the slave of a terminal; see ioctl_tty(2).
func peer(master *os.File) (slave *os.File, err error) {
	raw, err := master.SyscallConn()
	if err != nil {
		return nil, err
	}
	cerr := raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err != nil {
			return
		}
		n, _, e := unix.Syscall(unix.SYS_IOCTL, fd, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
		if e != 0 {
			err = e
			return
		}
		slave = os.NewFile(n, "terminal")
	})
	if cerr != nil {
		return nil, cerr
	}
	return slave, err
}

// close ends the use of what was opened here.
func (s streams) close() {
	if s.slave != nil {
		s.slave.Close()
	}
}

func closeFile(f *os.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}
