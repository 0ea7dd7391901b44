package bed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/images"
	"github.com/containerd-kuasar/containerd-kuasar/test/registry"
)

// Namespace is CRI's in containerd.
const Namespace = "k8s.io"

// closeTimeout bounds what Close waits for. Ending a pod takes CRI's grace
// period where a container ignores SIGTERM.
var closeTimeout = Patience(time.Minute)

// Handlers that every bed's configuration has.
const (
	Stock = "runc"        // containerd's shim and pause container
	Runc  = "kuasar-runc" // the runc sandboxer
	Wasm  = "kuasar-wasm" // the wasm sandboxer; pods may choose any engine
	VMM   = "kuasar-vmm"  // the vmm sandboxer: see RequireVMM

	// VMMClone is VMM with templates: see Templated.
	VMMClone = "kuasar-vmm-clone"
	// VMMPool is VMMClone with a machine that waits for the next pod: see Pooled.
	VMMPool = "kuasar-vmm-pool"
	// VMMBlock is VMM with root file systems that are disks: see Options.Blocks.
	VMMBlock = "kuasar-vmm-block"
)

// Options say how a bed differs from the usual one. The zero value is usual.
type Options struct {
	// Binary is the daemon to start; bin/containerd-kuasar if it is empty.
	Binary string
	// Config is TOML that is added to the end of the configuration.
	Config string
	// Blocks adds the handler VMMBlock, and the snapshotter that it needs.
	Blocks bool
	// Level is of the daemon's log; debug if it is empty.
	Level string
	// Environ is added to the daemon's environment, as "KEY=value".
	Environ []string
	// Log, if not nil, is called with every line the daemon logs.
	Log func(line string)
}

// Bed is one daemon with everything it needs, on private paths.
type Bed struct {
	Dir  string // of everything below; short, for unix sockets
	Root string // of the repository

	Registry *registry.Registry
	Runtime  runtime.RuntimeServiceClient
	Images   runtime.ImageServiceClient

	options Options
	conn    *grpc.ClientConn
	log     *journal

	mu     sync.Mutex
	daemon *daemon // the running one, or the last
}

// New makes a bed. The daemon does not run yet; Close must be called.
func New(options Options) (*Bed, error) {
	root, err := findRoot()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "kb")
	if err != nil {
		return nil, fmt.Errorf("make bed: %w", err)
	}
	b := &Bed{Dir: dir, Root: root, options: options, log: newJournal(options.Log)}
	if err := b.furnish(); err != nil {
		return nil, errors.Join(fmt.Errorf("make bed %s: %w", dir, err), b.Close())
	}
	return b, nil
}

func (b *Bed) furnish() error {
	// Containers of other users pass through it to their root file systems.
	if err := os.Chmod(b.Dir, 0o711); err != nil {
		return err
	}
	var err error
	if b.Registry, err = registry.Listen(); err != nil {
		return err
	}
	if err := images.Add(b.Registry, "/bin/busybox", b.Path("build/images")); err != nil {
		return err
	}
	if err := b.configure(); err != nil {
		return err
	}
	if b.conn, err = dial(b.Socket()); err != nil {
		return err
	}
	b.Runtime = runtime.NewRuntimeServiceClient(b.conn)
	b.Images = runtime.NewImageServiceClient(b.conn)
	return nil
}

// Path is a path of the repository: of a built binary, or of a source.
func (b *Bed) Path(name string) string { return filepath.Join(b.Root, name) }

// Socket is where the daemon serves.
func (b *Bed) Socket() string { return filepath.Join(b.Dir, "sock") }

// State is the daemon's state directory.
func (b *Bed) State() string { return filepath.Join(b.Dir, "s") }

// Client is a containerd client of the daemon. It is for contexts with a
// namespace and outlives restarts.
func (b *Bed) Client() (*containerd.Client, error) {
	client, err := containerd.NewWithConn(b.conn)
	if err != nil {
		return nil, fmt.Errorf("make containerd client: %w", err)
	}
	return client, nil
}

// Close removes all pods, ends the daemon and everything it started, and
// removes the directory. It works at any time, also twice.
func (b *Bed) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	var errs []error
	if b.running() {
		errs = append(errs, b.removeAll(ctx))
		errs = append(errs, b.Stop(ctx))
	}
	errs = append(errs, b.sweep())
	if b.conn != nil {
		errs = append(errs, b.conn.Close())
		b.conn = nil
	}
	if b.Registry != nil {
		errs = append(errs, b.Registry.Close())
	}
	errs = append(errs, os.RemoveAll(b.Dir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clear bed %s: %w", b.Dir, err)
	}
	return nil
}

// findRoot looks for the repository from the working directory upwards.
func findRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("find the repository: no go.mod here or above")
		}
		dir = parent
	}
}
