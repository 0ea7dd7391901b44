// Package thread runs code whose effects on its thread (namespaces,
// credentials, the root directory) must not outlive it.
package thread

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Do runs do on a thread that is not used for anything afterwards. It blocks
// until do returns; what do starts may run elsewhere. A panic in do ends the
// program, as in any goroutine.
func Do(do func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread cannot end, and /proc shows its namespaces as
			// the process's. While we occupy it, another one is found.
			result <- Do(do)
			runtime.UnlockOSThread()
			return
		}
		result <- do() // Go ends a thread whose goroutine ends without unlocking it
	}()
	return <-result
}
