// Package crilog completes a container's CRI log after the daemon died.
//
// The CRI plugin reads a container's output into memory and writes whole
// lines, so a killed daemon takes some output with it. The container's agent
// still has the newest output of each stream (see task/relay). What of it is
// not in the log is appended, before the CRI plugin goes on with the rest.
package crilog

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// tail is how much of a log is read back at first. One line of output
	// becomes one entry with some 45 bytes around it: this covers the output
	// that a relay keeps unless nearly all its lines are shorter than 8 bytes,
	// or another stream has written much more.
	tail = 1 << 20

	// maxTail is how much is read for a stream that tail does not cover: more
	// than the kubelet lets a log become before it rotates it (10 MiB).
	maxTail = 16 << 20

	// maxLine is where entries are split: max_container_log_line_size's default.
	maxLine = 16 << 10

	partial, full = "P", "F"
)

// Retained is the newest output of one stream that has left its FIFO.
type Retained struct {
	Stream   string // "stdout" or "stderr"
	Data     []byte // oldest first
	Complete bool   // Data is all that the stream ever carried
}

// Complete appends to the log at path what it lacks of the streams, and returns
// how many bytes of output that were. A log that does not exist is left alone:
// its owner removed it. Nobody else may write to it meanwhile.
func Complete(path string, streams ...Retained) (int, error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("complete log: %w", err)
	}
	defer file.Close()
	entries, whole, err := enough(path, streams)
	if err != nil {
		return 0, fmt.Errorf("complete log %s: %w", path, err)
	}
	var lost int
	var b bytes.Buffer
	var foreign error
	for _, s := range streams {
		missing, ok := missing(content(entries, s.Stream), whole, s.Data, s.Complete)
		if !ok {
			foreign = fmt.Errorf("complete log %s: its %s is not what the container wrote: %w", path, s.Stream, errdefs.ErrDataLoss)
		}
		lost += len(missing)
		format(&b, s.Stream, missing, time.Now())
	}
	if lost == 0 {
		return 0, foreign
	}
	if err := mend(file, entries); err != nil {
		return 0, fmt.Errorf("complete log %s: %w", path, err)
	}
	if _, err := file.Write(b.Bytes()); err != nil {
		return 0, fmt.Errorf("complete log: %w", err)
	}
	return lost, foreign
}

// mend removes the beginning of an entry from the end of a log: the daemon died
// while it wrote that, and what it was to be is retained.
func mend(file *os.File, entries []byte) error {
	torn := int64(len(entries) - 1 - bytes.LastIndexByte(entries, '\n'))
	info, err := file.Stat()
	if err != nil || torn == 0 || torn > info.Size() { // of a file before this one
		return err
	}
	return file.Truncate(info.Size() - torn)
}

// large lets one log at a time be read beyond tail: it is held in memory.
var large sync.Mutex

// enough returns an end of the log that shows what of the streams is in it, as
// far as maxTail goes.
func enough(path string, streams []Retained) (entries []byte, whole bool, err error) {
	entries, whole, err = read(path, tail)
	covered := !slices.ContainsFunc(streams, func(s Retained) bool { return len(content(entries, s.Stream)) < len(s.Data) })
	if err != nil || whole || covered {
		return entries, whole, err
	}
	large.Lock()
	defer large.Unlock()
	return read(path, maxTail)
}

// read returns the end of the log, with its rotated predecessors before it, and
// whether that is all of it.
func read(path string, tail int) (entries []byte, whole bool, err error) {
	rotated, err := filepath.Glob(path + ".*") // kubelet appends ".20060102-150405"
	if err != nil {
		return nil, false, err
	}
	slices.Sort(rotated)
	files := append(slices.DeleteFunc(rotated, func(p string) bool { return filepath.Ext(p) == ".tmp" }), path)
	// The kubelet removes the oldest of them.
	whole = len(files) == 1
	for _, file := range slices.Backward(files) {
		if len(entries) >= tail {
			return entries, false, nil
		}
		get := readEnd
		if filepath.Ext(file) == ".gz" {
			get = unzipEnd
		}
		b, all, err := get(file, tail-len(entries))
		if err != nil {
			return nil, false, err
		}
		entries = append(b, entries...)
		whole = whole && all
	}
	return entries, whole, nil
}

// unzipEnd is readEnd for a file that the kubelet has compressed.
func unzipEnd(path string, n int) (b []byte, all bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, false, fmt.Errorf("%s: %w", path, err)
	}
	all = true
	chunk := make([]byte, 256<<10)
	for {
		got, err := io.ReadFull(z, chunk)
		b = append(b, chunk[:got]...)
		end := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if excess := len(b) - n; excess > n || excess > 0 && end {
			b, all = append(b[:0], b[excess:]...), false
		}
		if end {
			return b, all, nil
		}
		if err != nil {
			return nil, false, fmt.Errorf("%s: %w", path, err)
		}
	}
}

func readEnd(path string, n int) (b []byte, all bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, false, err
	}
	start := max(info.Size()-int64(n), 0)
	b, err = io.ReadAll(io.NewSectionReader(f, start, int64(n)))
	return b, start == 0, err
}

// content extracts the output of one stream from log entries. The first one may
// be cut: it is dropped unless it is whole by its looks.
func content(entries []byte, stream string) []byte {
	var out []byte
	for line := range bytes.Lines(entries) {
		fields := bytes.SplitN(line, []byte(" "), 4) // time, stream, tag, text
		if len(fields) < 4 || string(fields[1]) != stream || !bytes.HasSuffix(line, []byte("\n")) {
			continue
		}
		switch text := fields[3]; string(fields[2]) {
		case full:
			out = append(out, text...)
		case partial:
			out = append(out, text[:len(text)-1]...)
		}
	}
	return out
}

// missing returns the end of retained that is not in logged. Both are ends of
// the same output; whole and complete say that they are all of it. If both are,
// the answer is exact, and not ok if they are of different outputs. Otherwise it
// is the shortest end that makes the two agree, which is exact unless the output
// repeats itself. A stream whose all is retained, and of which the log has
// nothing as far as it was read, is missing whole: rather twice than never.
func missing(logged []byte, whole bool, retained []byte, complete bool) (_ []byte, ok bool) {
	retained = bytes.ReplaceAll(retained, []byte("\r\n"), []byte("\n")) // as the CRI plugin does
	if complete && (whole || len(logged) == 0) {
		if rest, found := bytes.CutPrefix(retained, logged); found {
			return rest, true
		}
		return nil, false
	}
	for n := range len(retained) {
		seen := retained[:len(retained)-n]
		if bytes.HasSuffix(seen, logged) || bytes.HasSuffix(logged, seen) {
			return retained[len(seen):], true
		}
	}
	return nil, true
}

// format writes output as entries. An unfinished line becomes a partial entry,
// which the container's further output completes.
func format(b *bytes.Buffer, stream string, output []byte, now time.Time) {
	for line := range bytes.Lines(output) {
		line, ended := bytes.CutSuffix(line, []byte("\n"))
		for len(line) > maxLine {
			entry(b, now, stream, partial, line[:maxLine])
			line = line[maxLine:]
		}
		if ended {
			entry(b, now, stream, full, line)
		} else {
			entry(b, now, stream, partial, line)
		}
	}
}

func entry(b *bytes.Buffer, now time.Time, stream, tag string, text []byte) {
	b.WriteString(now.Format(time.RFC3339Nano))
	fmt.Fprintf(b, " %s %s %s\n", stream, tag, text)
}
