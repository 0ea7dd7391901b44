package server

import (
	"context"
	"os"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"
)

// Runtime makes containers of one kind and acts on them. It keeps nothing in
// memory about them: a Ref, and what it wrote below Ref.Dir, is all it gets
// after a restart. The Server follows the processes, owns their stdio and
// never makes two calls that change the same container at a time, but for
// Exec, Signal and the reading ones.
//
// Errors carry an errdefs class and a remedy where there is one.
type Runtime interface {
	// Create makes the container and its first process, which waits for Start
	// before it becomes the program. On error nothing is left but files in
	// ref.Dir. Create and Exec leave a child of the calling process that
	// nobody waits for.
	Create(ctx context.Context, ref Ref, p Process) (Started, error)

	// Start lets the first process go on. It is called again if a worker died
	// in it, and is no error then if the program runs already.
	Start(ctx context.Context, ref Ref, pid *os.File) error

	// Exec runs p.Spec in the container.
	Exec(ctx context.Context, ref Ref, p Process) (Started, error)

	// Signal sends sig to every process of the container, paused or not. It
	// is errdefs.ErrNotFound if there is none.
	Signal(ctx context.Context, ref Ref, sig unix.Signal) error

	// Pids of all processes of the container, seen from the agent.
	Pids(ctx context.Context, ref Ref) ([]int, error)

	// Delete removes the container. Idempotent, and right after a crash of
	// Create at any point: processes that are left are killed.
	Delete(ctx context.Context, ref Ref) error
}

// What a Runtime may have beside, found by type assertion. A missing one is
// answered with errdefs.ErrNotImplemented.
type (
	// Pauser stops and continues a container's processes.
	Pauser interface {
		Pause(ctx context.Context, ref Ref) error
		Resume(ctx context.Context, ref Ref) error
		Paused(ctx context.Context, ref Ref) (bool, error)
	}

	// Updater changes the resources of a running container. Fields that are
	// not set keep their values.
	Updater interface {
		Update(ctx context.Context, ref Ref, r *specs.LinuxResources) error
	}

	// Grouper knows the container's cgroup: controller to directory on v1,
	// "" to directory on v2. Without it there are no stats and OOM events.
	Grouper interface {
		Cgroups(ctx context.Context, ref Ref) (map[string]string, error)
	}

	// Checkpointer saves a container in files and makes one of them.
	Checkpointer interface {
		// Checkpoint writes the image to path. The container's processes are
		// gone afterwards if opts.Exit is set.
		Checkpoint(ctx context.Context, ref Ref, path string, opts *options.CheckpointOptions) error

		// Restore makes a container, already running, of the image at path.
		Restore(ctx context.Context, ref Ref, p Process, path string) (Started, error)
	}
)

// Ref names a container to its Runtime.
type Ref struct {
	Namespace, ID string

	// Dir is the runtime's own, private and on the state file system. The
	// Server makes and removes it.
	Dir string

	// Bundle is the OCI bundle's directory. It may be gone in Delete.
	Bundle string

	// Options as the container was created with; nil if it had none.
	Options *anypb.Any
}

// Process is what Create, Exec and Restore start.
type Process struct {
	// Spec is the container's, and Exec the process's if it is not the first.
	// The callee may change them.
	Spec *specs.Spec
	Exec *specs.Process

	// Stdio, open and blocking; nil with a terminal. They stay the caller's.
	Stdin, Stdout, Stderr *os.File
	Terminal              bool
}

// Started is a process that was started.
type Started struct {
	Pid    int
	Master *os.File // of the terminal; the caller's
}
