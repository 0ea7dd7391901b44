// Package runner is the process of a Wasm container: it loads one compiled
// module, waits until it may go on, and runs it to its end.
//
// The worker starts it in a cell (see package cell) and without privileges, and
// talks to it through three descriptors. It loads the module before it says
// that it is ready, so that a container that cannot run is refused when it is
// created.
package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Descriptors that a runner has beside its stdio.
const (
	configFd = 3 // a Config, to its end; it comes once the cgroup has the process
	statusFd = 4 // takes Ready, or why there is none
	gateFd   = 5 // a byte of it lets the module run
)

// Ready is what a runner says that has its module.
const Ready = "ok\n"

// MaxStatus bounds what is read of a runner's reason, in bytes.
const MaxStatus = 1000

// maxConfig bounds a Config, in bytes: arguments and environment are limited by
// execve(2) to some 2 MiB elsewhere.
const maxConfig = 8 << 20

// Version of the protocol between worker and runner.
const Version = 1

// Config is what a runner is told.
type Config struct {
	Version int
	Code    string // directory of the compiled module
	Root    string // becomes the module's /
	Limits  []Limit
	Process Process
}

// Limit is one of setrlimit(2).
type Limit struct {
	Kind       int
	Soft, Hard uint64
}

// Process is what a module gets.
type Process struct {
	Args   []string
	Env    []string // as "KEY=value"
	Dirs   []Dir
	Memory int64 // most that its linear memory may have, in bytes; 0 is 4 GiB
}

// Dir is a directory that a module may use.
type Dir struct {
	Host, Guest string
	ReadOnly    bool
}

// Module is a loaded module. It runs once.
type Module interface {
	// Run runs it to its end, with the stdio of this process, and returns its
	// exit status. An error is what made it trap, or why it did not run.
	Run(p Process) (int, error)
}

// Loader opens what an engine's compiler has written into a directory.
type Loader func(dir string, p Process) (Module, error)

// trapped is the exit status of a module that trapped: as of a process that
// ended by SIGABRT.
const trapped = 128 + int(unix.SIGABRT)

// Main is a runner's whole life; the caller exits with what it returns.
func Main(load Loader) int {
	status := os.NewFile(statusFd, "status")
	module, p, err := prepare(load)
	surrender()
	if err == nil {
		_, err = status.WriteString(Ready)
	} else {
		_, _ = status.WriteString(line(err))
	}
	status.Close()
	if err != nil || await() != nil {
		return trapped
	}
	code, err := module.Run(p)
	if err != nil {
		fmt.Fprintln(os.Stderr, line(err))
		return trapped
	}
	return code
}

func prepare(load Loader) (_ Module, _ Process, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("engine panics: %v", r)
		}
	}()
	c, err := configure()
	if err != nil {
		return nil, c.Process, err
	}
	for _, l := range c.Limits {
		if err := unix.Setrlimit(l.Kind, &unix.Rlimit{Cur: l.Soft, Max: l.Hard}); err != nil {
			return nil, c.Process, fmt.Errorf("set limit %d to %d and %d: %w", l.Kind, l.Soft, l.Hard, err)
		}
	}
	module, err := load(c.Code, c.Process)
	if err != nil {
		return nil, c.Process, err
	}
	if c.Root != "" {
		// Engines that follow links find only what is the module's.
		if err := errors.Join(unix.Chroot(c.Root), unix.Chdir("/")); err != nil {
			return nil, c.Process, fmt.Errorf("enter %s: %w", c.Root, err)
		}
	}
	return module, c.Process, nil
}

func configure() (Config, error) {
	var c Config
	f := os.NewFile(configFd, "config")
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxConfig))
	if err != nil {
		return c, fmt.Errorf("read configuration: %w", err)
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, fmt.Errorf("read configuration: %w", err)
	}
	if c.Version != Version {
		return c, fmt.Errorf("worker speaks version %d of the runner's protocol, this runner %d: install binaries of one release, and start the pod again", c.Version, Version)
	}
	return c, nil
}

// await blocks until the gate opens.
func await() error {
	gate := os.NewFile(gateFd, "gate")
	defer gate.Close()
	var b [1]byte
	for {
		n, err := unix.Read(gateFd, b[:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 1:
			return nil
		default:
			return io.EOF
		}
	}
}

// line makes one bounded line of an error.
func line(err error) string {
	text := strings.Join(strings.Fields(strings.ReplaceAll(err.Error(), "\n", ": ")), " ")
	if len(text) > MaxStatus {
		text = text[:MaxStatus]
	}
	return text
}
