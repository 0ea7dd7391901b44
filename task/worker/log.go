package worker

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/log"
)

const (
	// maxLog is the size in bytes at which the worker's log is put aside as
	// log.old. The state directory is in memory.
	maxLog = 1 << 20

	// tendCalls is how many calls of Agent come between two looks at it.
	tendCalls = 1024
)

// openLog returns the worker's log and its size.
func (w *Worker) openLog() (*os.File, int64, error) {
	if err := w.rotate(); err != nil {
		return nil, 0, err
	}
	f, err := os.OpenFile(filepath.Join(w.cfg.Dir, logFile), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, 0, fmt.Errorf("open the log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("open the log: %w", err)
	}
	return f, info.Size(), nil
}

// tend looks after the log of a worker that lives long.
func (w *Worker) tend() {
	if w.calls.Add(1)%tendCalls != 0 {
		return
	}
	if err := w.rotate(); err != nil {
		log.G(w.life).WithError(err).Warn("the worker's log grows")
	}
}

// rotate copies a log that is too large to log.old and empties it. The worker
// has the file open, and appends to it.
func (w *Worker) rotate() error {
	path := filepath.Join(w.cfg.Dir, logFile)
	if info, err := os.Stat(path); err != nil || info.Size() <= maxLog {
		return nil
	}
	from, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("rotate the log: %w", err)
	}
	defer from.Close()
	to, err := os.OpenFile(path+".old", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("rotate the log: %w", err)
	}
	_, err = io.Copy(to, from)
	if err := errors.Join(err, to.Close(), from.Truncate(0)); err != nil {
		return fmt.Errorf("rotate the log: %w", err)
	}
	return nil
}

// tail is the end of what the worker wrote since offset, for an error.
func tail(log *os.File, offset int64) string {
	const most = 512
	if info, err := log.Stat(); err == nil {
		offset = max(offset, info.Size()-most)
	}
	b := make([]byte, most)
	n, _ := log.ReadAt(b, offset)
	said := strings.TrimSpace(string(b[:n]))
	if said == "" {
		return ""
	}
	return fmt.Sprintf(" (it said: %q)", said)
}
