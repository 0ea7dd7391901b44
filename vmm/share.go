package vmm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/host"
)

var (
	fpShareBind = failpoint.New("vmm/share/bind")
	fpShareView = failpoint.New("vmm/share/view")
)

const (
	// Tag is the share's name in the guest.
	Tag = "kuasar"

	// Seen is where the guest's agent has it mounted.
	Seen = "/run/kuasar/share"

	// podFiles is the directory of the pod's own files in the share.
	podFiles = "pod"
)

// virtiofsds are where virtiofsd is looked for beside PATH: of Debian's packages
// virtiofsd and, before version 13, qemu-system-common.
var virtiofsds = []string{"/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"}

func (o Options) virtiofsd() (string, error) {
	program, err := find("virtiofsd", o.Virtiofsd, virtiofsds...)
	if err != nil {
		return "", fmt.Errorf("%w: install virtiofsd", err)
	}
	return program, nil
}

// share makes the pod's share and runs the daemon that serves it.
func (p *pod) share(ctx context.Context) ([]Share, error) {
	if err := p.makeShare(); err != nil {
		return nil, fmt.Errorf("make the pod's share: %w", err)
	}
	s := Share{Tag: Tag, Dir: filepath.Join(p.dir, viewDir)}
	if !p.driver.Needs().Share {
		return []Share{s}, nil
	}
	program, err := p.opts.virtiofsd()
	if err != nil {
		return nil, err
	}
	s.Socket = socketShare
	listener, err := Inherit(p.socket(socketShare))
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	err = p.launch(ctx, roleShare, Command{
		// Both the C and the Rust virtiofsd take these; each has its seccomp
		// filter on unless told otherwise. They end with the VMM's connection.
		Args: []string{
			program, "--fd=3", "-o", "source=" + s.Dir,
			"-o", "cache=auto", "-o", "sandbox=chroot", "-o", "xattr", "-o", "announce_submounts",
		},
		Files: []*os.File{listener},
	})
	return []Share{s}, err
}

// makeShare makes the two directories of the share. What is mounted in the one
// appears in the other, the view, which is read-only itself: the guest cannot
// move or replace what the daemon makes there, nor lead it elsewhere with
// symbolic links, but only write to what is mounted for its containers.
func (p *pod) makeShare() error {
	share, view := filepath.Join(p.dir, shareDir), filepath.Join(p.dir, viewDir)
	for _, dir := range []string{share, view, filepath.Join(share, podFiles)} {
		if err := os.Mkdir(dir, 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if err := host.MakeFiles(filepath.Join(share, podFiles), p.config, nil); err != nil {
		return err
	}
	if err := bind(share, share, unix.MountAttr{Propagation: unix.MS_SHARED}); err != nil {
		return err
	}
	fpShareBind.Hit()
	if err := bind(share, view, unix.MountAttr{Propagation: unix.MS_SLAVE, Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return err
	}
	fpShareView.Hit()
	// The pod's own files a container may write to, as in any pod. From here on
	// they are the guest's: the daemon does not open them again.
	files := filepath.Join(share, podFiles)
	return bind(files, files, unix.MountAttr{Propagation: unix.MS_PRIVATE})
}

// removeShare undoes makeShare and whatever is mounted below. Idempotent.
func (p *pod) removeShare() error {
	share, view := filepath.Join(p.dir, shareDir), filepath.Join(p.dir, viewDir)
	ids, err := host.Bundles(share)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := p.release(id); err != nil {
			return err
		}
	}
	return errors.Join(host.Unmount(filepath.Join(share, podFiles)), host.Unmount(view), host.Unmount(share))
}

// bind mounts source, and all below it, on target. Attributes and propagation
// are set before it appears, in target and wherever that propagates to.
func bind(source, target string, attr unix.MountAttr) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return &os.PathError{Op: "open mount", Path: source, Err: err}
	}
	defer unix.Close(fd)
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return &os.PathError{Op: "set attributes of mount", Path: source, Err: err}
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, target, err)
	}
	return nil
}
