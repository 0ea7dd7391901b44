package vmm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/cgroup"
	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/task"
	"github.com/containerd-kuasar/containerd-kuasar/vmm/network"
)

var (
	fpNoted  = failpoint.New("vmm/admit/noted")
	fpPlaced = failpoint.New("vmm/admit/placed")
)

// What a pod has in its directory.
const (
	vmDir    = "vm"    // 0700: sockets and logs of the machine's processes
	shareDir = "share" // what the guest sees, as the daemon changes it
	viewDir  = "view"  // the same, read-only but for its mounts: what is exported

	socketVsock = "v"  // hybrid vsock
	socketUser  = "vu" // vhost-user, of the vsock daemon
	socketShare = "fs" // vhost-user, of the share's daemon
)

// Roles of a pod's processes.
const (
	roleVMM   = "vmm"
	roleShare = "share"
	roleVsock = "vsock"
)

// pod implements sandbox.Sandbox. It is over when one of its processes is: none
// can be replaced under a machine that runs.
type pod struct {
	backend *Backend
	driver  Driver
	opts    Options
	pooled  bool   // its machine is the one that its handler's pool has
	spare   string // name of the machine that it has from there

	id, dir string // the sandbox's
	vm      string // directory of the machine's processes
	netns   string
	group   string // cgroup of the machine's processes
	saved   func(context.Context) error

	life    context.Context // is done when it is no longer running
	over    <-chan struct{} // life's
	finish  context.CancelFunc
	dialing chan struct{} // holds a token while the agent is dialed

	mu        sync.Mutex
	config    *runtime.PodSandboxConfig // until Start returns
	state     state
	exit      sandbox.Exit
	procs     map[string]*proc // by role; those that were alive
	control   VM
	transport transport
	client    *task.Client
	trial     *trial  // of a clone; nil otherwise
	keeper    *keeper // of the transport, if it needs one
}

// state is what Save returns.
type state struct {
	Boot      string             `json:"boot,omitempty"` // of the start
	Processes map[string]Process `json:"processes"`      // by role, from before they run
	Started   bool               `json:"started,omitempty"`
	Stopped   bool               `json:"stopped,omitempty"`

	Hypervisor string `json:"hypervisor"`
	Accel      Accel  `json:"accel"`         // what it runs with
	CID        uint32 `json:"cid,omitempty"` // 0 with hybrid vsock
	CPUs       uint32 `json:"cpus"`
	Memory     uint64 `json:"memory"`
	Slots      int    `json:"slots"`

	// What it can be resized to, of the handler that it was made by: 0 for that
	// of an earlier release, which keeps its size.
	Overhead  uint64 `json:"overhead,omitempty"`
	MaxCPUs   uint32 `json:"max_cpus,omitempty"`
	MaxMemory uint64 `json:"max_memory,omitempty"`
	Resize    *size  `json:"resize,omitempty"` // that has begun

	Key      []byte `json:"key,omitempty"`      // of the debug console, if it is on
	Template string `json:"template,omitempty"` // the machine is a clone of

	Network []network.Interface `json:"network,omitempty"` // what the guest has
}

// Save implements sandbox.Sandbox.
func (p *pod) Save() (json.RawMessage, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return json.Marshal(p.state)
}

// Wait implements sandbox.Sandbox.
func (p *pod) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-p.over:
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.exit, nil
	case <-ctx.Done():
		return sandbox.Exit{}, fmt.Errorf("wait for pod %s: %w", p.id, ctx.Err())
	}
}

// end makes the pod over. The first call counts.
func (p *pod) end(e sandbox.Exit) (first bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.over:
		return false
	default:
		p.exit = e
		p.finish()
		return true
	}
}

// Pid implements sandbox.Processer: the VMM.
func (p *pod) Pid() uint32 { return uint32(p.process(roleVMM).Pid) }

// process is one of the pod's, zero if there is none.
func (p *pod) process(role string) Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state.Processes[role]
}

// launch starts one of the pod's processes.
func (p *pod) launch(ctx context.Context, role string, c Command) error {
	out, err := os.OpenFile(p.log(role), os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	c.Dir, c.as = p.vm, p.as(role, c.Args[0])
	return launch(c, p.netns, out, func(q Process) error { return p.admit(ctx, role, q) })
}

func (p *pod) log(role string) string { return filepath.Join(p.vm, role+".log") }

// admit makes a process, which does not run yet, one of the pod's.
func (p *pod) admit(ctx context.Context, role string, q Process) error {
	p.mu.Lock()
	p.state.Processes[role] = q
	p.mu.Unlock()
	if err := p.saved(ctx); err != nil {
		return err
	}
	fpNoted.Hit()
	if err := cgroup.Place(q.Pid, p.group); err != nil {
		return fmt.Errorf("move to cgroup %s: %w", p.group, err)
	}
	fpPlaced.Hit()
	return p.take(role, q)
}

// take follows one of the pod's processes.
func (p *pod) take(role string, q Process) error {
	p.mu.Lock()
	t := p.trial
	p.mu.Unlock()
	r, err := follow(p.backend.Reaper, q, func(e pidfd.Exit) { p.ended(t, role, e) })
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.procs[role] = r
	return nil
}

// died is told of the end of a process, by the Reaper. The VMM's is the pod's.
// Without a helper the VMM is of no use; but helpers also end because it does,
// a moment before it: it has some time to say how.
func (p *pod) died(role string, e pidfd.Exit) {
	p.mu.Lock()
	machine := p.procs[roleVMM]
	p.mu.Unlock()
	if role != roleVMM && machine != nil {
		select {
		case <-machine.done:
		default:
			p.report(role, e)
			time.AfterFunc(vmmTime, p.fell)
		}
		return
	}
	p.mu.Lock()
	stopped := p.state.Stopped
	p.mu.Unlock()
	if stopped { // that it was killed is no failure
		e.Status = 0
	}
	if p.end(sandbox.Exit{Status: e.Status, At: e.At}) && !stopped {
		p.report(role, e)
	}
	p.fell()
}

// vmmTime is how long a VMM may live without one of its helpers.
const vmmTime = 500 * time.Millisecond

func (p *pod) report(role string, e pidfd.Exit) {
	log.L.WithFields(log.Fields{"sandbox": p.id, "process": role, "status": e.Status}).Warn("process of pod ended, and so does the pod")
}

// fell kills what is left of a pod that is over, and waits for nothing.
func (p *pod) fell() { slay(p.living()) }

func slay(procs map[string]*proc) {
	for _, q := range procs {
		_ = pidfd.Signal(q.file, unix.SIGKILL)
	}
}

// leave stops following processes, which run on.
func (p *pod) leave() {
	for _, q := range p.living() {
		p.backend.Reaper.Unfollow(q.file)
		q.file.Close()
	}
}

func (p *pod) living() map[string]*proc {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.procs)
}

// kill ends every process of the pod and returns when they are gone. The VMM is
// first: its helpers' end would look to the guest like broken devices.
func (p *pod) kill(ctx context.Context) error {
	all := p.living()
	var errs []error
	if q := all[roleVMM]; q != nil {
		errs = append(errs, q.kill(ctx))
	}
	for _, q := range all {
		errs = append(errs, q.kill(ctx))
	}
	return errors.Join(errs...)
}

// Kill implements sandbox.Killer.
func (p *pod) Kill(ctx context.Context) error {
	if err := p.kill(ctx); err != nil {
		return fmt.Errorf("kill pod %s: %w", p.id, err)
	}
	return nil
}

// Stop implements sandbox.Sandbox.
func (p *pod) Stop(ctx context.Context) error {
	p.mu.Lock()
	p.state.Stopped = true
	p.mu.Unlock()
	if err := p.clear(ctx); err != nil {
		return fmt.Errorf("stop pod %s: %w", p.id, err)
	}
	p.end(sandbox.Exit{At: time.Now()})
	return nil
}

// Delete implements sandbox.Sandbox.
func (p *pod) Delete(ctx context.Context) error {
	if err := errors.Join(p.clear(ctx), p.removeShare(), p.removeDir()); err != nil {
		return fmt.Errorf("delete pod %s: %w", p.id, err)
	}
	p.end(sandbox.Exit{At: time.Now()})
	return nil
}

// clear ends all that runs. What the pod's containers have on this host stays
// until they are released.
func (p *pod) clear(ctx context.Context) error {
	p.mu.Lock()
	client := p.client
	p.client = nil
	p.mu.Unlock()
	if client != nil {
		client.Close()
	}
	if err := p.kill(ctx); err != nil {
		return err
	}
	return errors.Join(p.letKeeper(), p.part(), cgroup.Remove(p.group))
}

// letKeeper closes the transport's keeper: it has no more to keep.
func (p *pod) letKeeper() error {
	p.mu.Lock()
	k := p.keeper
	p.keeper = nil
	p.mu.Unlock()
	if k == nil {
		return nil
	}
	return k.close()
}

// running is an error for a pod that takes no calls.
func (p *pod) running() error {
	p.mu.Lock()
	started := p.state.Started
	p.mu.Unlock()
	if !started {
		return fmt.Errorf("it has not started: %w", errdefs.ErrUnavailable)
	}
	select {
	case <-p.over:
		return fmt.Errorf("the machine has ended: remove the pod: %w", errdefs.ErrFailedPrecondition)
	default:
		return nil
	}
}

// begin records that the pod is of this boot, before there is anything of it.
func (p *pod) begin(ctx context.Context) error {
	p.mu.Lock()
	p.state.Boot = record.Boot()
	p.mu.Unlock()
	return p.saved(ctx)
}

// socket is the path of a unix socket of the machine's.
func (p *pod) socket(name string) string { return filepath.Join(p.vm, name) }

func decimal(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
