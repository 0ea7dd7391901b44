package cell

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// confine keeps an engine that is no longer itself from the kernel's less
// trodden parts, and from the processes that it shares a user with. It needs
// no_new_privs; children inherit it.
func confine() error {
	if err := scope(); err != nil {
		return fmt.Errorf("confine signals: %w", err)
	}
	if err := filter(); err != nil {
		return fmt.Errorf("filter system calls: %w", err)
	}
	return nil
}

// scope has the kernel refuse signals and abstract sockets to whatever is
// outside of the cell. Before Linux 6.12, or without Landlock, there is only
// the filter.
func scope() error {
	const abi = 6 // the first with scopes
	if v, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION); e != 0 || v < abi {
		return nil
	}
	attr := unix.LandlockRulesetAttr{Scoped: unix.LANDLOCK_SCOPE_SIGNAL | unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET}
	rules, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if e != 0 {
		return e
	}
	defer unix.Close(int(rules))
	if _, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, rules, 0, 0); e != 0 {
		return e
	}
	return nil
}

// filter has the kernel refuse system calls that no engine makes. Those about
// memory and threads stay, which engines need much of; see program.
func filter() error {
	code := program(runtime.GOARCH)
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
}
