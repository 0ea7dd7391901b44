package vmm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/host"
)

var fpDir = failpoint.New("vmm/dir/mounted")

const (
	// dirSize is what the machine's processes may log in all, in bytes.
	dirSize = 1 << 20

	// dirFiles is far more than the sockets and logs there are.
	dirFiles = 64
)

// makeDir makes the directory of the machine's processes, a file system of its
// own: what a guest has them log then fills that, and nothing else of the
// host's.
func (p *pod) makeDir() error {
	if err := makeDir(p.vm, p.owner()); err != nil {
		return err
	}
	fpDir.Hit()
	return nil
}

// makeDir makes a directory of a machine whose user has that group.
func makeDir(path string, group uint32) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// Sticky: the processes make sockets here, and leave those alone that are not
	// theirs.
	options := fmt.Sprintf("size=%d,nr_inodes=%d,mode=01770,gid=%d", dirSize, dirFiles, group)
	if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return &os.PathError{Op: "mount tmpfs", Path: path, Err: err}
	}
	return nil
}

// give lets the pod's processes connect to a socket that was made for them:
// those that are its user, and those that are root without capabilities.
func (p *pod) give(socket string) error {
	path := p.socket(socket)
	return errors.Join(os.Lchown(path, 0, int(p.owner())), os.Chmod(path, 0o660))
}

// removeDir undoes makeDir but for the empty directory. Idempotent.
func (p *pod) removeDir() error { return host.Unmount(p.vm) }
