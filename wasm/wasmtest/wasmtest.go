// Package wasmtest holds what every Wasm engine must do, as cases that run the
// modules of test/modules in real pods. Who calls Run brings the node.
package wasmtest

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Node starts containers in pods of one engine.
type Node interface {
	// Start returns once the container runs. The error is what the user sees
	// of a container that cannot.
	Start(t *testing.T, c Container) (Task, error)
}

// Container is one to run, of an image that has the modules in its root.
type Container struct {
	Args   []string // the first is the module's path
	Env    []string
	Dir    string // working directory
	User   uint32
	Stdin  string
	Mounts []Mount
	Memory int64 // limit in bytes; 0 is none
	Frozen bool  // the root file system is read-only
}

// Mount is a directory of the node that the container has.
type Mount struct {
	Source, Target string
	ReadOnly       bool
}

// Task is a container that was started.
type Task interface {
	// Await returns once the container has written text to stdout.
	Await(t *testing.T, text string)

	// Kill sends a signal.
	Kill(t *testing.T, sig unix.Signal)

	// Wait returns once it has ended and was removed.
	Wait(t *testing.T) Result
}

// Result is how a container ended.
type Result struct {
	Code           uint32
	Stdout, Stderr string
}

// trapped is the exit code of a module that trapped: as of a process that ended
// by SIGABRT.
const trapped = 128 + uint32(unix.SIGABRT)

// Run runs all cases.
func Run(t *testing.T, n Node) {
	for name, run := range map[string]func(*testing.T, Node){
		"Outputs": outputs,
		"Files":   files,
		"Mounts":  mounts,
		"User":    user,
		"Clock":   clock,
		"Random":  random,
		"Stdin":   stdin,
		"Signals": signals,
		"Memory":  memory,
		"Traps":   traps,
		"Refused": refused,
		"Many":    many,
	} {
		t.Run(name, func(t *testing.T) { run(t, n) })
	}
}

// run runs a container to its end.
func run(t *testing.T, n Node, c Container) Result {
	t.Helper()
	task, err := n.Start(t, c)
	if err != nil {
		t.Fatal(err)
	}
	return task.Wait(t)
}

// prints runs a container that must write want to stdout, and nothing else.
func prints(t *testing.T, n Node, c Container, want string) {
	t.Helper()
	if r := run(t, n, c); r != (Result{Stdout: want}) {
		t.Errorf("%s: %s, want stdout %.200q", strings.Join(c.Args, " "), r, want)
	}
}

// probe is a container of the program of test/modules/probe.
func probe(args ...string) Container {
	return Container{Args: append([]string{"/probe.wasm"}, args...)}
}

func (r Result) String() string {
	return "exit code " + decimal(r.Code) + ", stdout " + quote(r.Stdout) + ", stderr " + quote(r.Stderr)
}

// within fails a test that takes longer.
func within(t *testing.T, limit time.Duration, what string, f func()) {
	t.Helper()
	start := time.Now()
	f()
	if took := time.Since(start); took > limit {
		t.Errorf("%s took %v, want at most %v", what, took, limit)
	}
}
