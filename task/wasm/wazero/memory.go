package wazero

import (
	"github.com/tetratelabs/wazero/experimental"
	"golang.org/x/sys/unix"
)

// memory is a module's linear memory. Its addresses are reserved once, so that
// it grows in place, and pages are the kernel's to give when they are touched:
// of Go's memory each growth would be a copy, and count as used.
type memory struct {
	all  []byte // reserved; nil until the first allocation
	max  uint64
	used uint64
}

// allocate implements experimental.MemoryAllocatorFunc.
func allocate(_, max uint64) experimental.LinearMemory { return &memory{max: max} }

// Reallocate implements experimental.LinearMemory.
func (m *memory) Reallocate(size uint64) []byte {
	if m.all == nil {
		if m.max == 0 {
			return []byte{}
		}
		all, err := unix.Mmap(-1, 0, int(m.max), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
		if err != nil {
			return nil
		}
		m.all = all
	}
	if size > m.max {
		return nil
	}
	if size > m.used {
		const page = 4096
		from, to := m.used&^(page-1), min((size+page-1)&^(page-1), uint64(len(m.all)))
		if err := unix.Mprotect(m.all[from:to], unix.PROT_READ|unix.PROT_WRITE); err != nil {
			return nil
		}
		m.used = size
	}
	return m.all[:size:size]
}

// Free implements experimental.LinearMemory.
func (m *memory) Free() {
	if m.all != nil {
		_ = unix.Munmap(m.all)
		m.all = nil
	}
}
