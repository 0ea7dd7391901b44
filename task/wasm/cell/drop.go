package cell

import (
	"fmt"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kept are the capabilities that mean something to a module: those about files
// and about low ports. CAP_SYS_CHROOT is the runner's (see package runner); what
// it leads to is the cell.
var kept = map[string]uint{
	"CAP_CHOWN":            unix.CAP_CHOWN,
	"CAP_DAC_OVERRIDE":     unix.CAP_DAC_OVERRIDE,
	"CAP_FOWNER":           unix.CAP_FOWNER,
	"CAP_NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE,
}

// drop gives the calling thread the container's user and what is kept of its
// capabilities. Raw system calls: others change all threads.
func (c *Cell) drop() error {
	caps := []uint{unix.CAP_SYS_CHROOT}
	for _, name := range c.Keep {
		if n, ok := kept[name]; ok {
			caps = append(caps, n)
		}
	}
	for n := uint(0); n <= 63; n++ {
		if slices.Contains(caps, n) {
			continue
		}
		// EINVAL: there are no more.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(n), 0, 0, 0); err == unix.EINVAL {
			break
		} else if err != nil {
			return fmt.Errorf("drop capability %d: %w", n, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	if err := c.become(); err != nil {
		return err
	}
	if err := capset(caps); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	for _, n := range caps {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(n), 0, 0); err != nil {
			return fmt.Errorf("keep capability %d: %w", n, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("give up new privileges: %w", err)
	}
	return confine()
}

// become makes the calling thread the user's. Its umask is its own since it
// left the others' mounts.
func (c *Cell) become() error {
	umask := uint32(0o022)
	if c.User.Umask != nil {
		umask = *c.User.Umask
	}
	unix.Umask(int(umask))
	groups := append([]uint32{c.User.GID}, c.User.AdditionalGids...)
	if _, _, e := syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0])), 0); e != 0 {
		return fmt.Errorf("set groups: %w", e)
	}
	gid, uid := uintptr(c.User.GID), uintptr(c.User.UID)
	if _, _, e := syscall.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); e != 0 {
		return fmt.Errorf("become group %d: %w", gid, e)
	}
	if _, _, e := syscall.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); e != 0 {
		return fmt.Errorf("become user %d: %w", uid, e)
	}
	return nil
}

func capset(caps []uint) error {
	var data [2]unix.CapUserData
	for _, n := range caps {
		bit := uint32(1) << (n % 32)
		data[n/32].Permitted |= bit
		data[n/32].Effective |= bit
		data[n/32].Inheritable |= bit
	}
	return unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0])
}
