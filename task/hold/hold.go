// Package hold keeps the worker's file descriptors in the daemon too: pidfds,
// which alone tell how a process ended whose parent died, and the masters of
// terminals, which end with their last holder.
//
// The worker (Holder) listens on a socket and the daemon (Keeper) connects.
// Either outlives the other's death, and after it the survivor gives the other
// one what it has:
//
//	Keeper                          Holder
//	   │ hold key+fd, for all it has  │
//	   │─────────────────────────────►│
//	   │ done                         │
//	   │─────────────────────────────►│ Restore returns, the first time
//	   │ hold key+fd, for all others  │ drop key, for what was dropped
//	   │◄─────────────────────────────│
//	   │ done                         │
//	   │◄─────────────────────────────│
//	   │ Connect returns              │
//	   │ hold key+fd, drop key, …     │
//	   │◄─────────────────────────────│
//
// A message is one packet of JSON on a SOCK_SEQPACKET unix socket, with the
// descriptor as SCM_RIGHTS (unix(7)). Whoever breaks this protocol is
// disconnected.
package hold

import (
	"fmt"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Kinds of descriptors, for Key.
const (
	Pidfd = "pidfd"
	Pty   = "pty"
)

const (
	// maxKey is in bytes. Three identifiers of containerd have up to 76 each.
	maxKey = 512

	// maxHeld bounds what a peer can make us hold. RLIMIT_NOFILE of the daemon
	// is lower on most nodes.
	maxHeld = 1 << 16
)

// Key names a descriptor of a container (exec is empty) or of an exec in it.
func Key(namespace, container, exec, kind string) string {
	return strings.Join([]string{namespace, container, exec, kind}, "/")
}

func checkKey(key string) error {
	bad := func(r rune) bool { return r == utf8.RuneError || unicode.IsControl(r) }
	if key == "" || len(key) > maxKey || strings.ContainsFunc(key, bad) {
		return fmt.Errorf("key %.80q of %d bytes: want 1 to %d bytes of printable UTF-8: %w", key, len(key), maxKey, errdefs.ErrInvalidArgument)
	}
	return nil
}

// duplicate makes another descriptor of f's description.
func duplicate(f *os.File) (int, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	if cerr := conn.Control(func(old uintptr) { fd, err = dup(int(old)) }); cerr != nil {
		return -1, cerr
	}
	return fd, err
}

func dup(fd int) (int, error) {
	d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("duplicate descriptor: %w", err)
	}
	return d, nil
}

// rescue turns a panic over what a peer sent into the end of its connection.
func rescue(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("panic over a peer's message: %v: %w", r, errdefs.ErrInternal)
	}
}
