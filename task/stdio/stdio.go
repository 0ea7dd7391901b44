// Package stdio opens what containerd names as a process's stdio and gives it
// to the process itself, so that its bytes pass through no other one:
//
//	container ──stdout──► FIFO ──► containerd ──► log
//	           ◄─stdin─── FIFO ◄── containerd
//
// Nothing in between can die, and the FIFO keeps its bytes as long as anybody
// has it open. Each end is opened so that a death elsewhere does no harm:
//
//   - The container's stdout and stderr are open for reading and writing.
//     While it lives the FIFO has a reader, so that it is never killed by
//     SIGPIPE, and what it wrote waits for the next containerd.
//   - The agent has the read end too. What was not read when the container
//     ended remains in the FIFO for a containerd that is not there yet; see
//     kept. The agent has no write end while the container runs: the reader
//     sees the end when the last process of the container is gone.
//   - The agent keeps a write end of stdin until CloseStdin, so that stdin does
//     not end with containerd or with whoever attached to it. The write end is
//     not a reader: when the container is gone, writers are told.
//
// The container's ends are descriptions of its own. It can make them
// non-blocking, or open /dev/stdout again (libcontainer gives the FIFO to its
// user), and nobody else's change.
//
// Only what cannot be given away is copied: a terminal's master, and logs in
// regular files (whose owner and mode are none of the container's business).
// One goroutine with one buffer does this for all of them.
//
// With Config.Retain the process gets a FIFO of its own, a spool, and package
// relay moves its bytes on to containerd's FIFO: containerd can ask for the
// newest ones again after it died with them in its memory. This costs a third
// of the throughput, which is still twice that of a shim (BenchmarkOutput,
// BenchmarkShim).
package stdio

import (
	"context"
	"os"
)

// Config names a process's stdio as containerd's Task API gives it: "" for
// /dev/null, the path of a FIFO, or for output the URI of a file
// ("file:///path") or of a program that logs ("binary:///path?arg=value" and
// "binary-v2:", as containerd's runtime v2 documents them).
type Config struct {
	Namespace, Container  string // what a logging program is told
	Exec                  string // of a process that is not the container's first
	Stdin, Stdout, Stderr string
	Terminal              bool // Stderr is ignored then
	Retain                bool // keep the newest output of FIFOs; see api.AgentClient.Retained
	StdinClosed           bool // for Reopen: CloseStdin was called before
	Remote                bool // the process is not of this host: who opens this copies; see Files
}

// Opener makes stdio. Host does it with FIFOs; a guest, whose stdio are
// streams to its host, has another.
type Opener interface {
	// Open opens stdio for a process that is about to start. It blocks until
	// somebody opens the other end of each output FIFO, as containerd's shim
	// does: then no output is lost, however short the process lives. A name
	// that cannot be used is errdefs.ErrInvalidArgument, one that does not
	// exist errdefs.ErrNotFound.
	Open(ctx context.Context, cfg Config) (IO, error)

	// Reopen takes up the stdio of a process that was started by an agent
	// before this one. master is its terminal's, taken over also on error; nil
	// without a terminal. What does not exist any more is left out.
	Reopen(ctx context.Context, cfg Config, master *os.File) (IO, error)
}

// IO is the stdio of one process. Safe for concurrent use.
type IO interface {
	// Files are what the process gets as stdin, stdout and stderr, all in
	// blocking mode; all nil with a terminal. They belong to the IO and are
	// good until Started or Close.
	//
	// Of a remote process they can be waited for, there are none for "" nor for a
	// stderr that is stdout's name, and a reopened IO has them, too. Closing one
	// ends what it goes to.
	Files() (stdin, stdout, stderr *os.File)

	// Started closes Files: from now on only the process has them. Call it
	// once the process was forked. Idempotent.
	Started()

	// Attach takes the master of the process's terminal over, also on error,
	// and starts copying. Once, with a terminal only.
	Attach(master *os.File) error

	// Resize sets the terminal's size in characters. Without a terminal it is
	// errdefs.ErrFailedPrecondition.
	Resize(width, height uint32) error

	// CloseStdin ends stdin once the process has read what is in the FIFO and
	// no client has it open. Idempotent.
	CloseStdin() error

	// Exited is to be called when the process is gone and before this is told
	// to anybody. It returns when what the process wrote to its terminal or
	// its log is where Config said, at the latest when ctx ends: a FIFO may
	// have no reader. Copying goes on then. With a terminal, the reader sees
	// the end although descendants may have it open. An error is about output
	// that is late or lost.
	Exited(ctx context.Context) error

	// Close lets go of everything; what nobody has read is lost. Idempotent.
	Close() error
}
