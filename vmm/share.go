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
	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/host"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
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
func (p *pod) share(ctx context.Context) (_ []Share, err error) {
	ctx, span := trace.Start(ctx, "vmm.share")
	defer span.End(&err)
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
	if err := p.give(socketShare); err != nil {
		return nil, err
	}
	err = p.launch(ctx, roleShare, Command{
		// Both the C and the Rust virtiofsd take these; each has its seccomp
		// filter on unless told otherwise. They end with the VMM's connection.
		Args: []string{
			program, "--fd=3", "-o", "source=" + s.Dir,
			"-o", "cache=auto", "-o", "sandbox=chroot", "-o", "xattr", "-o", "announce_submounts",
		},
		Files: []*os.File{listener},
		// It acts for all users of the guest, in a root of its own.
		Capabilities: []int{
			unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_MKNOD,
			unix.CAP_SETFCAP, unix.CAP_SETGID, unix.CAP_SETPCAP, unix.CAP_SETUID, unix.CAP_SYS_CHROOT,
		},
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
	if err := bind(share, share, unix.MountAttr{Propagation: unix.MS_SHARED}, 0); err != nil {
		return err
	}
	fpShareBind.Hit()
	if err := bind(share, view, unix.MountAttr{Propagation: unix.MS_SLAVE, Attr_set: unix.MOUNT_ATTR_RDONLY}, 0); err != nil {
		return err
	}
	fpShareView.Hit()
	if err := p.shareModules(share); err != nil {
		return err
	}
	// The pod's own files a container may write to, as in any pod. From here on
	// they are the guest's: the daemon does not open them again.
	files := filepath.Join(share, podFiles)
	return bind(files, files, unix.MountAttr{Propagation: unix.MS_PRIVATE}, 0)
}

// moduleFiles is the directory of the guest's kernel modules in the share.
var moduleFiles = filepath.Base(api.Modules)

// shareModules gives the guest the kernel modules that are beside its initramfs,
// if there are any.
func (p *pod) shareModules(share string) error {
	source, target := filepath.Join(filepath.Dir(p.opts.Initrd), moduleFiles), filepath.Join(share, moduleFiles)
	if _, err := os.Stat(source); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := os.Mkdir(target, 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return bind(source, target, unix.MountAttr{Propagation: unix.MS_PRIVATE, Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOEXEC}, 0)
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
	return errors.Join(host.Unmount(filepath.Join(share, moduleFiles)), host.Unmount(filepath.Join(share, podFiles)), host.Unmount(view), host.Unmount(share))
}

// bind mounts source, and all below it, on target. Attributes and propagation,
// and further attributes of source alone, are set before it appears, in target
// and wherever that propagates to.
func bind(source, target string, attr unix.MountAttr, top uint64) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return &os.PathError{Op: "open mount", Path: source, Err: err}
	}
	defer unix.Close(fd)
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return &os.PathError{Op: "set attributes of mount", Path: source, Err: err}
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: top}); err != nil {
		return &os.PathError{Op: "set attributes of mount", Path: source, Err: err}
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, target, err)
	}
	return nil
}
