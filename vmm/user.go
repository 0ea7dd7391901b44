package vmm

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

const (
	// firstUser of machines, and how many there are: a range that systemd leaves
	// to nobody (UIDS-GIDS.md), and no distribution assigns.
	firstUser = 0x7000_0000
	manyUsers = 0x1000_0000
)

// user is who runs a process: nobody that the host knows of. The zero value is
// root.
type user struct {
	id     uint32 // also the group's
	groups []uint32
}

// credential is nil for root, which a process is already.
func (u user) credential() *syscall.Credential {
	if u.id == 0 {
		return nil
	}
	return &syscall.Credential{Uid: u.id, Gid: u.id, Groups: u.groups}
}

// userOf is the user of a pod's machine. It follows from the pod's id, so that
// nobody has to keep account of users. That two of a thousand pods have the same
// one has a chance of 1 in 500.
func userOf(pod string) uint32 {
	sum := sha256.Sum256([]byte(pod))
	return firstUser + binary.BigEndian.Uint32(sum[:])%manyUsers
}

// owner of the machine's directory is the user that some of its processes are.
func (p *pod) owner() uint32 { return ownerOf(p.machineID()) }

func ownerOf(machine string) uint32 {
	if unmapped() != nil {
		return 0
	}
	return userOf(machine)
}

// machineID is the pod's id, or the name of the machine that it has from the pool:
// that has had its user for longer than it has had its pod.
func (p *pod) machineID() string { return cmp.Or(p.spare, p.id) }

// as is the user that a process of the pod's runs as. It is root, without
// capabilities, where another one could not open what the process opens itself;
// virtiofsd acts for all users of the guest.
func (p *pod) as(role, program string) user {
	var err error
	var groups []uint32
	switch role {
	case roleVMM:
		groups, err = p.opts.unprivileged(program, p.machine().Accel)
	case roleVsock:
		if err = unmapped(); err == nil {
			err = anyone(program, 0o001)
		}
	default:
		return user{}
	}
	if err != nil {
		p.backend.asRoot.Do(func() {
			log.L.WithError(err).WithField("process", role).Warn("virtual machines run as root, without capabilities, and not as users of their own")
		})
		return user{}
	}
	return user{userOf(p.machineID()), groups}
}

// Unprivileged says why machines' VMM runs as root, if it does: without
// capabilities, but as the owner of most of this host's files.
func (o Options) Unprivileged(program string, accel Accel) error {
	_, err := o.unprivileged(program, accel)
	return err
}

// unprivileged returns the groups that a VMM needs to be nobody otherwise.
func (o Options) unprivileged(program string, accel Accel) (groups []uint32, err error) {
	if err := unmapped(); err != nil {
		return nil, err
	}
	for path, want := range map[string]fs.FileMode{program: 0o001, o.Kernel: 0o004, o.Initrd: 0o004} {
		if err := anyone(path, want); err != nil {
			return nil, err
		}
	}
	if accel != KVM {
		return nil, nil
	}
	return groupOf("/dev/kvm")
}

// groupOf returns the group whose members may read and write a device, none if
// everybody may.
func groupOf(path string) (groups []uint32, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	switch mode := info.Mode().Perm(); {
	case mode&0o006 == 0o006:
		return nil, nil
	case mode&0o060 == 0o060 && gid(info) != 0:
		return []uint32{gid(info)}, nil
	}
	return nil, fmt.Errorf("%s is root's alone: give it to a group: %w", path, errdefs.ErrPermissionDenied)
}

func gid(info fs.FileInfo) uint32 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Gid
	}
	return 0
}

// anyone says whether everybody may open a file so.
func anyone(path string, want fs.FileMode) error {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	for {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if info.Mode().Perm()&want != want {
			return fmt.Errorf("%s has the mode %v, which is not for everybody: %w", path, info.Mode(), errdefs.ErrPermissionDenied)
		}
		if path == "/" {
			return nil
		}
		path, want = filepath.Dir(path), 0o001 // may be searched
	}
}

// unmapped says whether this daemon is in a user namespace that has not all
// users.
func unmapped() error {
	for _, file := range []string{"/proc/self/uid_map", "/proc/self/gid_map"} {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var has bool
		for line := range strings.Lines(string(b)) {
			var first, outside, many uint64
			_, err := fmt.Sscan(line, &first, &outside, &many)
			has = has || err == nil && first <= firstUser && first+many >= firstUser+manyUsers
		}
		if !has {
			return fmt.Errorf("%s has not the ids from %d: %w", file, firstUser, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}
