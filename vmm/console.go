package vmm

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// console takes what the guest's kernel prints while it starts, for the error if
// it does not. Nobody looks at it later, and a guest must not fill a disk: it
// has room for the first of it and no more.
type console struct{ file *os.File }

// consoleSize is enough for the boot of a kernel that says all it can, in bytes.
const consoleSize = 64 << 10

func newConsole() (*console, error) {
	fd, err := unix.MemfdCreate("console", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make the guest's console: %w", err)
	}
	c := &console{os.NewFile(uintptr(fd), "console")}
	err = unix.Ftruncate(fd, consoleSize)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make the guest's console: %w", err), c.file.Close())
	}
	return c, nil
}

// tail quotes the end of what was printed.
func (c *console) tail() string {
	b := make([]byte, consoleSize)
	if _, err := c.file.ReadAt(b, 0); err != nil {
		return ""
	}
	b = bytes.TrimSpace(bytes.TrimRight(b, "\x00"))
	if len(b) == 0 {
		return ""
	}
	return fmt.Sprintf("; the guest says: %q", b[max(0, len(b)-tailSize):])
}

func (c *console) close() { c.file.Close() }
