package console

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

func cat(ctx context.Context, paths []string, out io.Writer) error {
	for _, path := range paths {
		if err := show(ctx, path, out); err != nil {
			return err
		}
	}
	return nil
}

// show copies a file. One that is no regular file may block or act when it is
// read, and is refused; those of procfs and sysfs count as regular.
func show(ctx context.Context, path string, out io.Writer) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return class(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file: %w", path, errdefs.ErrInvalidArgument)
	}
	_, err = io.Copy(struct{ io.Writer }{out}, reader{ctx, f})
	return err
}

// reader ends with a context.
type reader struct {
	ctx context.Context
	f   *os.File
}

func (r reader) Read(b []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	return r.f.Read(b)
}

// class gives an error of the file system the one that its kind has elsewhere.
func class(err error) error {
	switch {
	case os.IsNotExist(err):
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	case os.IsPermission(err):
		return fmt.Errorf("%w: %w", err, errdefs.ErrPermissionDenied)
	}
	return err
}

func ls(_ context.Context, args []string, out io.Writer) error {
	dir := "/"
	if len(args) > 0 {
		dir = args[0]
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return class(err)
	}
	t := table(out)
	for _, e := range entries {
		info, err := e.Info()
		if err != nil { // it is gone
			continue
		}
		name := e.Name()
		if info.Mode().Type() == os.ModeSymlink {
			if to, err := os.Readlink(dir + "/" + name); err == nil {
				name += " -> " + to
			}
		}
		row(t, info.Mode().String(), owner(info), strconv.FormatInt(info.Size(), 10), info.ModTime().UTC().Format(time.DateTime), name)
	}
	return t.Flush()
}

func mounts(_ context.Context, _ []string, out io.Writer) error {
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return err
	}
	t := table(out)
	row(t, "MOUNTPOINT", "TYPE", "SOURCE", "ROOT", "OPTIONS", "PROPAGATION")
	for _, m := range all {
		options := strings.Join([]string{m.Options, m.VFSOptions}, ";")
		row(t, m.Mountpoint, m.FSType, m.Source, m.Root, options, cmp.Or(m.Optional, "private"))
	}
	return t.Flush()
}

func owner(info os.FileInfo) string {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return fmt.Sprintf("%d:%d", s.Uid, s.Gid)
	}
	return ""
}
