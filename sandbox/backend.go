package sandbox

import (
	"context"
	"encoding/json"
	"net"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/typeurl/v2"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/task"
)

// Backend makes sandboxes of one kind of isolation: a microVM, a set of
// namespaces, an application kernel. It keeps no list of them: the Controller
// owns their life, their states and their records.
type Backend interface {
	// Create checks the spec and options and returns a sandbox with nothing
	// outside this process but files below spec.Dir. Bad input is
	// errdefs.ErrInvalidArgument and names the key and its value.
	Create(ctx context.Context, spec Spec) (Sandbox, error)

	// Restore reopens a sandbox after a daemon restart from what Save last
	// returned. saved is nil when the daemon died before the first Save. It
	// returns a sandbox also when what it describes is dead or half-made: Wait
	// then returns at once, and Stop and Delete clean up. An error quarantines
	// the sandbox: nothing of it is touched, and Restore may be tried again. It
	// is not called after a reboot of the host, which leaves of a sandbox
	// nothing but Spec.Dir; the Controller removes that.
	Restore(ctx context.Context, spec Spec, saved json.RawMessage) (Sandbox, error)
}

// Sandbox is one pod's isolation. The Controller calls Start, Stop, Update and
// Delete one at a time; all else at any time, also while Start runs.
type Sandbox interface {
	// Start returns once the agent listens. On error nothing is left but
	// files below Spec.Dir.
	Start(ctx context.Context) error

	// Agent is the Task API endpoint of the sandbox's containers. It is
	// errdefs.ErrUnavailable until Start returned and while the agent is gone.
	Agent(ctx context.Context) (*task.Client, error)

	// Prepare does the host's side of one container: mounts its rootfs, writes
	// its bundle and rewrites its spec for this sandbox. It owns c.Spec.
	// Whatever it makes is found again by the container's id alone, so that
	// Release works after a crash at any point.
	Prepare(ctx context.Context, c *Container) (Bundle, error)

	// Release undoes Prepare. Idempotent; an unknown id is no error.
	Release(ctx context.Context, id string) error

	// Stop ends the sandbox and every process in it. Idempotent.
	Stop(ctx context.Context) error

	// Wait blocks until the sandbox is no longer running, whatever ended it.
	Wait(ctx context.Context) (Exit, error)

	// Delete removes what Stop left: mounts, namespaces, cgroups. Idempotent.
	// The Controller removes Spec.Dir afterwards.
	Delete(ctx context.Context) error

	// Save returns what Restore needs, at once. The Controller calls it before
	// and after the calls above that change something; a sandbox calls
	// Spec.Saved itself when it changes in between, before an outside effect.
	Save() (json.RawMessage, error)
}

// What a Sandbox may have beside, found by type assertion. A missing one is
// answered with errdefs.ErrNotImplemented or by what the comment says.
type (
	// Processer names the process that stands for the sandbox on the host
	// (the VMM, a shared pid namespace's init, the worker); 0 if there is none
	// yet, and never 1.
	Processer interface{ Pid() uint32 }

	// Specer returns the OCI spec that describes the sandbox to NRI: at least
	// cgroup path and namespaces. Without it the Controller derives one.
	Specer interface{ OCI() *specs.Spec }

	// Statser returns the pod's metrics: a *v1.Metrics or *v2.Metrics of
	// containerd/cgroups. It is called every second, once at a time.
	Statser interface {
		Stats(ctx context.Context) (typeurl.Any, error)
	}

	// Updater resizes a running sandbox.
	Updater interface {
		Update(ctx context.Context, r Resources) error
	}

	// Endpointer says where clients of containerd reach the sandbox's Task API
	// themselves: a ttrpc+ or grpc+ address, and the API's version. Without it
	// there is no such place: tasks go through the daemon.
	Endpointer interface {
		Endpoint() (address string, version uint32)
	}

	// Streamer connects to task/stream's port of an agent that does not share
	// this host's file system. It is the agent of this sandbox alone.
	Streamer interface {
		Stream(ctx context.Context) (net.Conn, error)
	}

	// Killer ends a sandbox that does not do as it is told, with all in it, as if
	// it had crashed. Stop and Delete come later, as usual. Idempotent.
	Killer interface {
		Kill(ctx context.Context) error
	}

	// Platformer says what the sandbox runs if that is not the host's own
	// operating system and architecture.
	Platformer interface{ Platform() imagespec.Platform }
)

// Spec is what a sandbox is made of. It does not change, and it is recorded.
type Spec struct {
	ID        string
	Namespace string // containerd's
	Name      string // CRI's pod name, unique among live sandboxes; may be empty

	// Dir belongs to this sandbox alone: private (0711, below a 0700 parent
	// where no user namespace needs to pass), on the state file system, short
	// enough for unix sockets.
	Dir string

	Config    *runtime.PodSandboxConfig // never nil
	NetNS     string                    // path of a pinned network namespace; empty for the host's
	Options   Options
	CreatedAt time.Time

	// Saved persists the sandbox's Save at once. Never nil; it has nothing to
	// save before Create or Restore returned.
	Saved func(ctx context.Context) error `json:"-"`
}

// Options are a handler's `options` table from containerd's config, as TOML.
type Options struct {
	TOML []byte
}

// Resources are what UpdatePodSandboxResources carries.
type Resources struct {
	Overhead  *runtime.LinuxContainerResources
	Resources *runtime.LinuxContainerResources
}

// Container is one container to prepare.
type Container struct {
	ID     string
	Spec   *specs.Spec
	Rootfs []mount.Mount // in mounting order, templates resolved
	IO     IO

	// Options are the client's for this task, nil if it gave none. Those of
	// the handler, which come here too if the client gave none, are in
	// Spec.Options already: a backend passes over types it does not know.
	Options *anypb.Any
}

// IO names a process's stdio as containerd gives it: paths of FIFOs, or URIs.
type IO struct {
	Stdin, Stdout, Stderr string
	Terminal              bool
}

// Bundle is a prepared container as its agent sees it.
type Bundle struct {
	Path string // of the OCI bundle, in the agent's mount namespace

	// Rootfs is where this host has the container's root file system; empty
	// if it has not.
	Rootfs string

	// Options go into the agent's CreateTaskRequest.
	Options *anypb.Any
}

// Exit says how a sandbox ended.
type Exit struct {
	Status uint32
	At     time.Time
}
