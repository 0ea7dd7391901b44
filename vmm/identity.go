package vmm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// identity is a file as it was when it was read: a file that was written to
// since then, or replaced, has another.
type identity struct {
	Device, Inode    uint64
	Size             int64
	Changed, Written int64 // in nanoseconds
}

func identify(path string) (identity, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return identity{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return toIdentity(&st), nil
}

func toIdentity(st *unix.Stat_t) identity {
	return identity{
		Device: uint64(st.Dev), Inode: st.Ino, Size: st.Size, //nolint:unconvert // its type depends on the architecture
		Changed: st.Ctim.Nano(), Written: st.Mtim.Nano(),
	}
}

// sum is the SHA-256 of a file, and which file that is of. Of the content only
// that counts which is not zero, so that nobody has to read holes.
func sum(ctx context.Context, path string) (string, identity, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", identity{}, err
	}
	defer f.Close()
	stat := func() (id identity, err error) {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return id, &os.PathError{Op: "stat", Path: path, Err: err}
		}
		return toIdentity(&st), nil
	}
	before, err := stat()
	if err != nil {
		return "", identity{}, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() { // others may have no end
		return "", identity{}, errors.Join(err, fmt.Errorf("%s is no regular file: %w", path, errdefs.ErrInvalidArgument))
	}
	h := hasher{sha256.New()}
	fmt.Fprintf(h, "%d\n", before.Size)
	err = sparse(ctx, f, h)
	if err != nil {
		return "", identity{}, err
	}
	after, err := stat()
	if err == nil && before != after {
		err = fmt.Errorf("%s changes while it is read: %w", path, errdefs.ErrUnavailable)
	}
	return hex.EncodeToString(h.Sum(nil)), after, err
}

// hasher is told the pages of a file that are not zero.
type hasher struct{ hash.Hash }

// WriteAt implements io.WriterAt.
func (h hasher) WriteAt(b []byte, at int64) (n int, err error) {
	for ; n < len(b); n += page {
		fmt.Fprintf(h, "%d\n", at+int64(n))
		h.Write(b[n:min(n+page, len(b))])
	}
	return len(b), nil
}

// allocated is what the files in a directory take, in bytes.
func allocated(dir string) (bytes int64, err error) {
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		const unit = 512 // of st_blocks, whatever the file system's is
		bytes += st.Blocks * unit
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	return bytes, err
}
