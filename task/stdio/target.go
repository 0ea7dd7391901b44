package stdio

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

type kind int

const (
	nowhere kind = iota // /dev/null
	byPath              // a FIFO, a device or a file that exists
	logFile             // a regular file, made if it is missing
	program             // one that logs
)

// target is a parsed name of Config.
type target struct {
	kind kind
	path string   // absolute and clean, empty for nowhere
	args []string // of a program
	// strict programs tell that they are ready by a byte; the older protocol
	// takes the end of the pipe for it.
	strict bool
}

func parse(name string) (target, error) {
	if name == "" {
		return target{}, nil
	}
	if strings.HasPrefix(name, "/") { // a path, whatever else is in it
		return target{kind: byPath, path: filepath.Clean(name)}, nil
	}
	u, err := url.Parse(name)
	if err != nil {
		return target{}, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	t := target{path: filepath.Clean(u.Path)}
	switch u.Scheme {
	case "fifo":
		t.kind = byPath
	case "file":
		t.kind = logFile
	case "binary", "binary-v2":
		t.kind = program
		t.strict = u.Scheme == "binary-v2"
		t.args = arguments(u.RawQuery)
	default:
		return target{}, fmt.Errorf("stdio %q: scheme is none of fifo, file, binary, binary-v2: %w", name, errdefs.ErrInvalidArgument)
	}
	if u.Host != "" || !strings.HasPrefix(u.Path, "/") {
		return target{}, fmt.Errorf("stdio %q: path is not absolute: %w", name, errdefs.ErrInvalidArgument)
	}
	return t, nil
}

// arguments makes "a=1&b" into [a 1 b ""]: name and value are an argument
// each, as with containerd's shim, but in the order they were written.
func arguments(query string) []string {
	var args []string
	for part := range strings.SplitSeq(query, "&") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		for _, s := range []string{name, value} {
			plain, err := url.QueryUnescape(s)
			if err != nil {
				plain = s
			}
			args = append(args, plain)
		}
	}
	return args
}

// node is a file system object that can be opened any number of times and
// stays the same one, whatever happens to its path.
type node struct {
	fd   int // O_PATH
	mode uint32
	name string
}

func lookup(name string) (node, error) {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return node{}, pathError("open", name, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return node{}, pathError("stat", name, err)
	}
	return node{fd: fd, mode: st.Mode & unix.S_IFMT, name: name}, nil
}

func (n node) open(flags int) (int, error) { return reopen(n.fd, n.name, flags) }

func (n node) close() { unix.Close(n.fd) }

// reopen makes another description of what fd is.
func reopen(fd int, name string, flags int) (int, error) {
	for {
		other, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return -1, pathError("open", name, err)
		}
		return other, nil
	}
}

func pathError(op, name string, err error) error {
	e := error(&os.PathError{Op: op, Path: name, Err: err})
	if err == unix.ENOENT || err == unix.ENOTDIR {
		e = fmt.Errorf("%w: %w", e, errdefs.ErrNotFound)
	}
	return e
}

func kindError(n node, want string) error {
	return fmt.Errorf("stdio %s: it is no %s: %w", n.name, want, errdefs.ErrInvalidArgument)
}
