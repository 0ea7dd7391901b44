// Package cgroup reads the files of cgroups: many small ones, often. It
// reads each by three system calls, where package os would need more and a
// look at the poller.
//
// Files that a kernel, a mount or a controller does not have are common:
// absent ones are errdefs.ErrNotFound for the caller to judge.
package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"math"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// maxFile bounds what is read of one file. The longest, blkio's, have some
// hundred bytes for each block device.
const maxFile = 1 << 20

// Read appends a file's content to buf[:0].
func Read(dir, name string, buf []byte) ([]byte, error) {
	path := filepath.Join(dir, name)
	fd, err := open(path)
	if err != nil {
		return nil, fileError("open", path, err)
	}
	defer unix.Close(fd)
	if cap(buf) == 0 {
		buf = make([]byte, 0, 4096)
	}
	buf = buf[:0]
	for {
		if len(buf) > maxFile {
			return nil, fmt.Errorf("read %s: more than %d bytes: %w", path, maxFile, errdefs.ErrResourceExhausted)
		}
		if len(buf) == cap(buf) {
			buf = append(buf, make([]byte, cap(buf))...)[:len(buf)]
		}
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, fileError("read", path, err)
		case n == 0:
			return buf, nil
		default:
			buf = buf[:len(buf)+n]
		}
	}
}

func open(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// fileError: a file that was open when its cgroup was removed gives ENODEV.
func fileError(op, path string, err error) error {
	e := error(&os.PathError{Op: op, Path: path, Err: err})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("%w: %w", e, errdefs.ErrNotFound)
	}
	return e
}

// Uint reads a file of one number; "max" is math.MaxUint64.
func Uint(dir, name string) (uint64, error) {
	var buf [64]byte
	b, err := Read(dir, name, buf[:0])
	if err != nil {
		return 0, err
	}
	v, ok := ParseUint(bytes.TrimSpace(b))
	if !ok {
		return 0, fmt.Errorf("read %s: %.40q is no number: %w", filepath.Join(dir, name), b, errdefs.ErrDataLoss)
	}
	return v, nil
}

// ParseUint also knows "max", and takes negative numbers, which some counters
// show for a moment, for 0.
func ParseUint(b []byte) (v uint64, ok bool) {
	if string(b) == "max" {
		return math.MaxUint64, true
	}
	v, err := strconv.ParseUint(string(b), 10, 64)
	if err == nil {
		return v, true
	}
	_, err = strconv.ParseInt(string(b), 10, 64)
	return 0, err == nil
}

// Keyed yields the pairs of a "key value" per line file; the keys are parts of
// b. Lines of another form are passed over: kernels add some.
func Keyed(b []byte) iter.Seq2[[]byte, uint64] {
	return func(yield func([]byte, uint64) bool) {
		for line := range bytes.Lines(b) {
			key, value, ok := bytes.Cut(bytes.TrimSpace(line), []byte{' '})
			if !ok {
				continue
			}
			v, ok := ParseUint(value)
			if ok && !yield(key, v) {
				return
			}
		}
	}
}
