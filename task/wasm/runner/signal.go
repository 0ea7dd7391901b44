package runner

import (
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// needed are the signals that engines and Go have for themselves: faults, what
// interrupts threads, and those of C libraries.
var needed = []unix.Signal{
	unix.SIGSEGV, unix.SIGBUS, unix.SIGFPE, unix.SIGILL, unix.SIGTRAP, unix.SIGSYS,
	unix.SIGURG, unix.SIGPROF, unix.SIGPIPE, unix.SIGCHLD, 32, 33, 34,
}

// surrender makes all others do to this process what they do to a program
// without handlers. Go would show its goroutines at some, which are nobody's
// business, and ignore others. See rt_sigaction(2): zeros are SIG_DFL.
func surrender() {
	const last = 64
	var none [4]uint64
	for sig := unix.Signal(1); sig <= last; sig++ {
		if !slices.Contains(needed, sig) {
			// It fails for SIGKILL and SIGSTOP, which nobody can handle.
			_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&none)), 0, 8, 0, 0)
		}
	}
}
