package wasm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/rlimit"
	"github.com/containerd-kuasar/containerd-kuasar/task/group"
	"github.com/containerd-kuasar/containerd-kuasar/task/phase"
	"github.com/containerd-kuasar/containerd-kuasar/task/server"
	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/binary"
	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/cell"
	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/engine"
	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/runner"
)

var (
	fpGroup  = failpoint.New("wasm/create/cgroup")
	fpRunner = failpoint.New("wasm/create/runner")
)

// errSilent is of a runner that was not ready and did not say why.
var errSilent = fmt.Errorf("it has no module: %w", errdefs.ErrFailedPrecondition)

// loading is how long a runner may take to load what is compiled.
const loading = 30 * time.Second

// Create implements server.Runtime.
func (r *Runtime) Create(ctx context.Context, ref server.Ref, p server.Process) (server.Started, error) {
	s, err := r.create(ctx, ref, p)
	if err != nil {
		err = fmt.Errorf("create container %s: %w", ref.ID, err)
		return server.Started{}, server.Join(err, r.Delete(ctx, ref))
	}
	return s, nil
}

func (r *Runtime) create(ctx context.Context, ref server.Ref, p server.Process) (server.Started, error) {
	program, err := r.program(ctx, ref, p.Spec, p.Spec.Process)
	if err != nil {
		return server.Started{}, err
	}
	g, err := plan(ref, p.Spec, program.options)
	if err != nil {
		return server.Started{}, err
	}
	if err := g.Save(ref.Dir); err != nil {
		return server.Started{}, err
	}
	fpGroup.Hit()
	if err := unix.Mkfifo(gate(ref), 0o600); err != nil {
		return server.Started{}, fmt.Errorf("make gate: %w", err)
	}
	door, err := unix.Open(gate(ref), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return server.Started{}, fmt.Errorf("open gate: %w", err)
	}
	f := os.NewFile(uintptr(door), "gate")
	defer f.Close()
	return program.start(ctx, g, p, f)
}

// Exec implements server.Runtime: it runs another module of the container's.
// A tmpfs of the container's is a new one for it.
func (r *Runtime) Exec(ctx context.Context, ref server.Ref, p server.Process) (server.Started, error) {
	spec, err := read(ref)
	var program *program
	if err == nil {
		program, err = r.program(ctx, ref, spec, deaf(p.Exec))
	}
	if errdefs.IsNotFound(err) || errors.Is(err, binary.ErrNoModule) {
		err = fmt.Errorf("%w: only modules of the container's can run: %v", errdefs.ErrNotImplemented, err)
	}
	var g group.Group
	if err == nil {
		g, err = load(ref)
	}
	if err != nil {
		return server.Started{}, fmt.Errorf("exec in container %s: %w", ref.ID, err)
	}
	in, out, err := os.Pipe()
	if err != nil {
		return server.Started{}, fmt.Errorf("exec in container %s: %w", ref.ID, err)
	}
	defer in.Close()
	defer out.Close()
	if _, err = out.Write([]byte{0}); err == nil { // it need not wait
		s, serr := program.start(ctx, g, p, in)
		if serr == nil {
			return s, nil
		}
		err = serr
	}
	return server.Started{}, fmt.Errorf("exec in container %s: %w", ref.ID, err)
}

// read reads the container's spec.
func read(ref server.Ref) (*specs.Spec, error) {
	raw, err := os.ReadFile(filepath.Join(ref.Bundle, "config.json"))
	if err != nil {
		return nil, fmt.Errorf("read spec: %w", err)
	}
	spec := &specs.Spec{}
	return spec, json.Unmarshal(raw, spec)
}

// plan is the container's cgroup before it is made.
func plan(ref server.Ref, spec *specs.Spec, o engine.Options) (group.Group, error) {
	config, err := specconv.CreateCgroupConfig(&specconv.CreateOpts{CgroupName: ref.ID, UseSystemdCgroup: o.SystemdCgroup, Spec: spec}, nil)
	if err != nil {
		return group.Group{}, fmt.Errorf("plan cgroup: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	// It has no devices, and nothing to make one with: see package cell.
	config.Resources.SkipDevices = true
	config.Resources.Devices = nil
	m, err := manager.New(config)
	if err != nil {
		return group.Group{}, fmt.Errorf("plan cgroup: %w", err)
	}
	paths := m.GetPaths()
	delete(paths, "devices")
	return group.Group{Paths: paths, Config: config}, nil
}

// program is a module with all that its process gets.
type program struct {
	options engine.Options
	runner  command
	config  runner.Config
	cell    cell.Cell
	score   *int // of the OOM killer
}

// listens says whether an environment variable asks for listeners.
func listens(env string) bool { return strings.HasPrefix(env, engine.Listen+"=") }

// deaf is a process without listeners: the container's first one has them.
func deaf(p *specs.Process) *specs.Process {
	q := *p
	q.Env = slices.DeleteFunc(slices.Clone(p.Env), listens)
	return &q
}

// program prepares a process of the container's.
func (r *Runtime) program(ctx context.Context, ref server.Ref, spec *specs.Spec, process *specs.Process) (*program, error) {
	o, err := engine.Parse(ref.Options)
	if err != nil {
		return nil, err
	}
	if o.Engine != engine.Wazero && slices.ContainsFunc(process.Env, listens) {
		return nil, fmt.Errorf("%s is for modules on %s, and this one runs on %s, which has no listeners to give: %w", engine.Listen, engine.Wazero, o.Engine, errdefs.ErrInvalidArgument)
	}
	if err := settle(ref.Bundle, spec, process); err != nil {
		return nil, err
	}
	compiled := phase.Begin(ctx, "module")
	code, err := r.code(ctx, spec, process, o)
	compiled()
	if err != nil {
		return nil, err
	}
	run, err := r.runner(o)
	if err != nil {
		return nil, err
	}
	place, err := r.place()
	if err != nil {
		return nil, err
	}
	p := &program{options: o, runner: run, score: process.OOMScoreAdj}
	limits, err := limits(process)
	if err != nil {
		return nil, err
	}
	p.config = runner.Config{Version: runner.Version, Code: codeDir, Limits: limits, Process: runner.Process{
		Args: process.Args, Env: environ(process), Memory: memory(spec),
	}}
	if run.chroot {
		p.config.Root = cell.Root
		p.config.Process.Dirs = []runner.Dir{{Host: "/", Guest: "/"}}
	} else {
		p.config.Process.Dirs = []runner.Dir{{Host: cell.Root, Guest: "/"}}
	}
	p.cell = cell.Cell{
		Dir:    place,
		Binds:  append(run.binds, cell.Bind{Source: code, Target: codeDir}),
		Rootfs: spec.Root.Path, ReadOnly: spec.Root.Readonly, Mounts: spec.Mounts,
		NetNS: network(spec), User: process.User, Keep: keep(process),
	}
	return p, nil
}

// keep are the capabilities that a program would have after execve(2).
func keep(p *specs.Process) []string {
	if p.Capabilities == nil {
		return nil
	}
	if p.User.UID == 0 {
		return p.Capabilities.Effective
	}
	return p.Capabilities.Ambient
}

// environ has PWD, from which programs take their working directory: WASI has
// none.
func environ(p *specs.Process) []string {
	set := func(e string) bool { return strings.HasPrefix(e, "PWD=") }
	return append(slices.DeleteFunc(slices.Clone(p.Env), set), "PWD="+p.Cwd)
}

// memory is the most that the module's own memory may have, so that it is told
// at the limit and need not be killed: an eighth of the container's is left to
// the engine.
func memory(spec *specs.Spec) int64 {
	if spec.Linux == nil || spec.Linux.Resources == nil || spec.Linux.Resources.Memory == nil || spec.Linux.Resources.Memory.Limit == nil {
		return 0
	}
	limit := max(*spec.Linux.Resources.Memory.Limit, 0)
	return limit - limit/8
}

func limits(p *specs.Process) ([]runner.Limit, error) {
	var list []runner.Limit
	for _, l := range p.Rlimits {
		kind, ok := rlimit.Kinds[l.Type]
		if !ok {
			return nil, fmt.Errorf("process.rlimits has unknown type %q: %w", l.Type, errdefs.ErrInvalidArgument)
		}
		list = append(list, runner.Limit{Kind: kind, Soft: l.Soft, Hard: l.Hard})
	}
	return list, nil
}

func network(spec *specs.Spec) string {
	if spec.Linux != nil {
		for _, ns := range spec.Linux.Namespaces {
			if ns.Type == specs.NetworkNamespace {
				return ns.Path
			}
		}
	}
	return ""
}

// start starts the runner and waits until it has the module. On error the
// process is dead.
func (p *program) start(ctx context.Context, g group.Group, from server.Process, gate *os.File) (_ server.Started, err error) {
	configIn, configOut, err := os.Pipe()
	if err != nil {
		return server.Started{}, err
	}
	defer configOut.Close()
	statusIn, statusOut, err := os.Pipe()
	if err != nil {
		configIn.Close()
		return server.Started{}, err
	}
	defer statusIn.Close()
	stdio, tty, err := terminal(from)
	var pid int
	if err == nil {
		files := append(stdio.files[:], configIn, statusOut, gate)
		pid, err = p.cell.Start(p.runner.path, p.runner.args, files, syscall.SysProcAttr{Setctty: tty != nil})
		stdio.close()
	}
	configIn.Close()
	statusOut.Close()
	if err != nil {
		return server.Started{}, server.Join(err, closeFile(tty))
	}
	fpRunner.Hit()
	if err = p.admit(ctx, g, pid, configOut, statusIn); err != nil {
		how := end(pid)
		if !errors.Is(err, errSilent) {
			how = nil
		}
		return server.Started{}, server.Join(err, how, closeFile(tty))
	}
	return server.Started{Pid: pid, Master: tty}, nil
}

// admit gives a runner its limits, then its configuration, and returns when it
// is ready.
func (p *program) admit(ctx context.Context, g group.Group, pid int, config, status *os.File) error {
	m, err := g.Manager()
	if err != nil {
		return err
	}
	if err := m.Apply(pid); err != nil {
		return fmt.Errorf("enter cgroup: %w", err)
	}
	if err := m.Set(g.Config.Resources); err != nil {
		return fmt.Errorf("limit cgroup: %w", err)
	}
	if p.score != nil {
		if err := disfavour(pid, *p.score); err != nil {
			return err
		}
	}
	// To raise limits takes a privilege that the runner has not, and to change
	// another user's process one that we may not have: it tries what is left.
	for _, l := range p.config.Limits {
		if err := unix.Prlimit(pid, l.Kind, &unix.Rlimit{Cur: l.Soft, Max: l.Hard}, nil); err != nil && err != unix.EPERM {
			return fmt.Errorf("set limit %d: %w", l.Kind, err)
		}
	}
	raw, err := json.Marshal(p.config)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(loading)
	if t, ok := ctx.Deadline(); ok && t.Before(deadline) {
		deadline = t
	}
	if err := errors.Join(config.SetWriteDeadline(deadline), status.SetReadDeadline(deadline)); err != nil {
		return err
	}
	_, werr := config.Write(raw)
	if err := config.Close(); werr == nil {
		werr = err
	}
	said, err := io.ReadAll(io.LimitReader(status, runner.MaxStatus))
	switch {
	case string(said) == runner.Ready:
		return nil
	case len(said) > 0:
		return fmt.Errorf("%s: %q: %w", p.options.Engine, said, errdefs.ErrInvalidArgument)
	default:
		return server.Join(fmt.Errorf("%s: %w", p.options.Engine, errSilent), werr, err)
	}
}

// end ends a runner that is of no use, and says how it ended if that had
// happened before: by SIGKILL, its memory limit may be too low for the engine.
// Nobody else reaps it.
func end(pid int) error {
	_ = unix.Kill(pid, unix.SIGKILL)
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil {
		return err
	}
	if ws.Signaled() {
		return fmt.Errorf("its process ended by %s", unix.SignalName(ws.Signal()))
	}
	return fmt.Errorf("its process ended with status %d", ws.ExitStatus())
}
