package vmm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
)

// RAM is the memory of a machine that is saved, or a clone: a memfd that the VMM
// maps shared, as Path says.
type RAM struct {
	file *os.File
	size int64
}

// NewRAM makes it, in bytes. It takes no memory until it is written to.
func NewRAM(size uint64) (*RAM, error) {
	fd, err := unix.MemfdCreate("kuasar-ram", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a machine's memory: %w", err)
	}
	r := &RAM{file: os.NewFile(uintptr(fd), "memory"), size: int64(size)}
	if err := r.file.Truncate(r.size); err != nil {
		return nil, errors.Join(fmt.Errorf("make a machine's memory of %d bytes: %w", size, err), r.Close())
	}
	return r, nil
}

// File is what the VMM maps. It remains r's.
func (r *RAM) File() *os.File { return r.file }

// Close lets go of this process's hold on it.
func (r *RAM) Close() error { return r.file.Close() }

// span is a part of a file: [from, to).
type span struct{ from, to int64 }

// data calls do with the parts of a sparse file that are no holes.
func data(ctx context.Context, f *os.File, do func(span) error) error {
	var s span
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var err error
		if s.from, err = unix.Seek(int(f.Fd()), s.to, unix.SEEK_DATA); err == unix.ENXIO { // to its end
			return nil
		}
		if err == nil {
			s.to, err = unix.Seek(int(f.Fd()), s.from, unix.SEEK_HOLE)
		}
		if err != nil {
			return &os.PathError{Op: "seek", Path: f.Name(), Err: err}
		}
		if err := do(s); err != nil {
			return err
		}
	}
}

// block is read at once, in bytes.
const block = 1 << 20

// Save writes it to a new file at path, as holes where it is zero. The machine
// does not run.
func (r *RAM) Save(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = sparse(ctx, r.file, f)
	if err == nil {
		err = f.Truncate(r.size)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("save a machine's memory: %w", err)
	}
	return nil
}

// sparse writes the pages of a file that are not zero.
func sparse(ctx context.Context, f *os.File, w io.WriterAt) error {
	b := make([]byte, block)
	return data(ctx, f, func(s span) error {
		for s.from -= s.from % page; s.from < s.to; s.from += int64(len(b)) {
			b = b[:min(block, s.to-s.from)]
			if _, err := f.ReadAt(b, s.from); err != nil {
				return err
			}
			if err := writeSparse(w, b, s.from); err != nil {
				return err
			}
		}
		return nil
	})
}

// page is what may be a hole, in bytes.
const page = 4096

var zero [page]byte

// writeSparse writes the pages of b that are not zero.
func writeSparse(w io.WriterAt, b []byte, at int64) error {
	blank := func(i int) bool { return bytes.Equal(b[i:min(i+page, len(b))], zero[:min(page, len(b)-i)]) }
	for from := 0; from < len(b); {
		if blank(from) {
			from += page
			continue
		}
		to := from + page
		for to < len(b) && !blank(to) {
			to += page
		}
		to = min(to, len(b))
		if _, err := w.WriteAt(b[from:to], at+int64(from)); err != nil {
			return err
		}
		from = to
	}
	return nil
}

// Fill copies what Save wrote at path to the machine of process p, which has
// mapped the memory and does not run yet. It is as if that process did: its
// cgroup is charged for the memory, not the daemon's.
func (r *RAM) Fill(ctx context.Context, p Process, path string) (err error) {
	ctx, span := trace.Start(ctx, "vmm.memory")
	defer span.End(&err)
	if err := r.fill(ctx, p, path); err != nil {
		return fmt.Errorf("fill a machine's memory: %w", err)
	}
	return nil
}

func (r *RAM) fill(ctx context.Context, p Process, path string) error {
	maps, err := r.mappings(p)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() != r.size {
		return fmt.Errorf("%s has %d bytes, the memory %d: %w", path, info.Size(), r.size, errdefs.ErrDataLoss)
	}
	// It is only the kernel that reads it, so that a file that gets shorter is
	// an error and not a signal.
	from, err := unix.Mmap(int(f.Fd()), 0, int(r.size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return &os.PathError{Op: "map", Path: path, Err: err}
	}
	defer func() { _ = unix.Munmap(from) }()
	w := &writer{pid: p.Pid}
	err = data(ctx, f, func(s span) error {
		for _, m := range maps {
			part := span{max(s.from, m.at.from), min(s.to, m.at.to)}
			if part.from >= part.to {
				continue
			}
			if err := w.write(from[part.from:part.to], m.address+uintptr(part.from-m.at.from)); err != nil {
				return err
			}
		}
		return nil
	})
	return errors.Join(err, w.flush())
}

// mapping is where a process has a part of the memory.
type mapping struct {
	address uintptr
	at      span
}

// mappings finds the memory in a process.
func (r *RAM) mappings(p Process) ([]mapping, error) {
	var want unix.Stat_t
	if err := unix.Fstat(int(r.file.Fd()), &want); err != nil {
		return nil, err
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", p.Pid))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	defer f.Close()
	device := fmt.Sprintf("%02x:%02x", unix.Major(want.Dev), unix.Minor(want.Dev))
	var all []mapping
	var sum int64
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text()) // see proc_pid_maps(5)
		if len(fields) < 5 || fields[3] != device || fields[4] != fmt.Sprint(want.Ino) {
			continue
		}
		var from, to uintptr
		var m mapping
		if _, err := fmt.Sscanf(fields[0], "%x-%x", &from, &to); err != nil {
			return nil, err
		}
		if _, err := fmt.Sscanf(fields[2], "%x", &m.at.from); err != nil {
			return nil, err
		}
		m.address, m.at.to = from, m.at.from+int64(to-from)
		sum += int64(to - from)
		all = append(all, m)
	}
	if sum != r.size {
		return nil, fmt.Errorf("process %d has mapped %d bytes of %d: %w", p.Pid, sum, r.size, errdefs.ErrFailedPrecondition)
	}
	if start, err := pidfd.StartTime(p.Pid); err != nil || start != p.Start {
		return nil, fmt.Errorf("process %d has ended: %w", p.Pid, errdefs.ErrUnavailable)
	}
	return all, nil
}

// writer writes to another process's memory, many parts in one call.
type writer struct {
	pid   int
	local []unix.Iovec
	other []unix.RemoteIovec
	bytes int
}

const (
	maxParts = 1024    // UIO_MAXIOV
	maxBytes = 8 << 20 // of one call, so that it can be given up
)

func (w *writer) write(b []byte, address uintptr) error {
	for len(b) > 0 {
		n := min(len(b), maxBytes-w.bytes)
		v := unix.Iovec{Base: &b[0]}
		v.SetLen(n)
		w.local = append(w.local, v)
		w.other = append(w.other, unix.RemoteIovec{Base: address, Len: n})
		w.bytes += n
		b, address = b[n:], address+uintptr(n)
		if w.bytes == maxBytes || len(w.local) == maxParts {
			if err := w.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *writer) flush() error {
	if w.bytes == 0 {
		return nil
	}
	n, err := unix.ProcessVMWritev(w.pid, w.local, w.other, 0)
	if err == nil && n != w.bytes {
		err = fmt.Errorf("%d bytes of %d: %w", n, w.bytes, errdefs.ErrDataLoss)
	}
	if err != nil {
		return fmt.Errorf("write to the memory of process %d: %w", w.pid, err)
	}
	w.local, w.other, w.bytes = w.local[:0], w.other[:0], 0
	return nil
}
