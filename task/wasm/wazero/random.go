package wazero

import "golang.org/x/sys/unix"

// random is the kernel's.
type random struct{}

func (random) Read(p []byte) (int, error) { return unix.Getrandom(p, 0) }
