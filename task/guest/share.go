package guest

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Refresh has the kernel look anew what is at path, in a directory that the host
// shares. FUSE believes for a second what it looked up (virtiofsd's cache=auto):
// a container whose predecessor had the same name would get that one's files.
//
// To make a directory is what a kernel never does upon what it believes
// (LOOKUP_EXCL in fuse_dentry_revalidate); this one is always there.
func Refresh(path string) error {
	if err := unix.Mkdir(path, 0o700); err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("look anew for %s: %w", path, err)
	}
	return nil
}
