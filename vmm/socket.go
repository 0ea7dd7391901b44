package vmm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A unix socket's path has at most 107 bytes, and a sandbox's directory may have
// more. So nobody uses whole paths: the machine's processes are started in its
// directory and have names in it, and the daemon goes by the directory's
// descriptor.

// Dial connects to the unix socket at path, however long that is, and to no other
// one: who may write to its directory cannot lead the caller elsewhere.
func Dial(ctx context.Context, path string) (conn *net.UnixConn, err error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// Listen makes a unix socket at path, however long that is, in place of one that
// is there. It stays when the listener is closed: a process may have inherited
// it.
func Listen(path string) (l *net.UnixListener, err error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	err = short(path, func(path string) error {
		l, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		return err
	})
	if err == nil {
		l.SetUnlinkOnClose(false)
	}
	return l, err
}

// Inherit is Listen for a process that gets the listener as a descriptor. The
// socket can be connected to before the process runs.
func Inherit(path string) (*os.File, error) {
	l, err := Listen(path)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return l.File()
}

// short calls do with another path of the same file.
func short(path string, do func(path string) error) error {
	fd, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	defer unix.Close(fd)
	return do(fmt.Sprintf("/proc/self/fd/%d/%s", fd, filepath.Base(path)))
}
