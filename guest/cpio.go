package guest

import (
	"bytes"
	"fmt"
)

// cpio is an archive in the format "newc", which is what the kernel unpacks; see
// its Documentation/driver-api/early-userspace/buffer-format.rst. The same
// content is the same bytes: nothing has a time.
type cpio struct {
	bytes.Buffer
	inode int
}

// Types of files, as in st_mode.
const (
	typeFile   = 0o100000
	typeDir    = 0o040000
	typeDevice = 0o020000 // character
)

func (c *cpio) file(name string, mode int, data []byte) { c.entry(name, typeFile|mode, 0, 0, data) }
func (c *cpio) dir(name string, mode int)               { c.entry(name, typeDir|mode, 0, 0, nil) }

func (c *cpio) device(name string, mode, major, minor int) {
	c.entry(name, typeDevice|mode, major, minor, nil)
}

// end returns the archive. There may be nothing after it.
func (c *cpio) end() []byte {
	c.inode = -1
	c.entry("TRAILER!!!", 0, 0, 0, nil)
	return c.Bytes()
}

func (c *cpio) entry(name string, mode, major, minor int, data []byte) {
	c.inode++
	c.WriteString("070701")
	const links, checksum = 1, 0 // this format has no checksum
	for _, field := range []int{
		c.inode, mode, 0 /* uid */, 0 /* gid */, links, 0 /* time */, len(data),
		0, 0 /* device that it is on */, major, minor, len(name) + 1, checksum,
	} {
		fmt.Fprintf(c, "%08X", field)
	}
	c.WriteString(name)
	c.WriteByte(0)
	c.pad()
	c.Write(data)
	c.pad()
}

func (c *cpio) pad() {
	for c.Len()%4 != 0 {
		c.WriteByte(0)
	}
}

// Append returns an archive of one more file at the root of an initramfs: the
// kernel unpacks what follows another archive, too.
func Append(name string, data []byte) []byte {
	var c cpio
	c.file(name, 0o644, data)
	return c.end()
}
