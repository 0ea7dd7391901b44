package tasks

import (
	"context"
	"fmt"
	"sync"

	apievents "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
	"github.com/containerd-kuasar/containerd-kuasar/task"
	"github.com/containerd-kuasar/containerd-kuasar/task/stream"
)

var (
	fpStarted = failpoint.New("tasks/start/started")
	fpExited  = failpoint.New("tasks/exit/told")
)

var _ runtime.ExecProcess = (*process)(nil)

// process is a task's first process, or an exec. Its state is a cache of its
// agent's: State and Wait never ask.
type process struct {
	task  *Task
	exec  string // empty for the first process
	stdio runtime.IO
	done  chan struct{} // closed when it has exited, or was deleted before it ran

	mu     sync.Mutex
	status runtime.Status
	pid    uint32 // 0 until it was made
	exit   exit   // valid after done, unless buried
	buried bool   // it was deleted before it ran
	stdin  int    // a descriptor or -1, see holdStdin
	closed bool   // CloseIO was called

	carrier *stream.Carrier // of stdio, if the agent shares no file system with us
	fresh   bool            // an exec of this daemon: Start opens its stdio
	logged  stream.Places   // how much of the output a restart found in the log

	// While calls run whose events must come before that of an exit, and while
	// there is a veil, the exit waits here.
	busy    int
	veiled  bool
	pending *exit
}

func newProcess(t *Task, exec string, stdio runtime.IO) *process {
	return &process{task: t, exec: exec, stdio: stdio, done: make(chan struct{}), status: runtime.CreatedStatus, stdin: -1}
}

// ID is the task's, or the exec's.
func (p *process) ID() string {
	if p.exec == "" {
		return p.task.key.id
	}
	return p.exec
}

func (p *process) String() string {
	if p.exec == "" {
		return "task " + p.task.key.id
	}
	return "process " + p.exec + " of task " + p.task.key.id
}

// State implements runtime.Process.
func (p *process) State(context.Context) (runtime.State, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return runtime.State{
		Status:     p.status,
		Pid:        p.pid,
		ExitStatus: p.exit.Status,
		ExitedAt:   p.exit.At,
		Stdin:      p.stdio.Stdin,
		Stdout:     p.stdio.Stdout,
		Stderr:     p.stdio.Stderr,
		Terminal:   p.stdio.Terminal,
	}, nil
}

// Wait implements runtime.Process. A process that was deleted before it ran is
// errdefs.ErrNotFound.
func (p *process) Wait(ctx context.Context) (*runtime.Exit, error) {
	select {
	case <-p.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for %s: %w", p, ctx.Err())
	}
	p.mu.Lock()
	buried := p.buried
	p.mu.Unlock()
	if buried {
		return nil, fmt.Errorf("%s was deleted before it ran: %w", p, errdefs.ErrNotFound)
	}
	return p.ended(), nil
}

func (p *process) ended() *runtime.Exit {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &runtime.Exit{Pid: p.pid, Status: p.exit.Status, Timestamp: p.exit.At}
}

func (p *process) isDone() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// hold makes exits wait until let. Each hold has its let.
func (p *process) hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy++
}

func (p *process) let() {
	p.mu.Lock()
	p.busy--
	pending := p.pending
	p.mu.Unlock()
	if pending != nil {
		p.exited(0, *pending) // it may have to wait on
	}
}

// made takes note of the process's pid, with p.mu held. If an exit is known
// already that has another pid, then it is of a former process of its id.
func (p *process) made(pid uint32) {
	if p.pid != 0 && p.pid != pid {
		p.pending = nil
	}
	p.pid = pid
}

// exited takes note of an exit and tells, once. pid is 0 if only the id is
// known, and not whether it is of a former process of that id. A process without
// a pid never ran, and its exit is no event. first says that nobody had said so
// before.
func (p *process) exited(pid uint32, e exit) (first bool) {
	p.mu.Lock()
	if p.pid == 0 {
		p.pid = pid // until made
	}
	if p.status == runtime.StoppedStatus || pid != 0 && pid != p.pid {
		p.mu.Unlock()
		return false
	}
	first = p.pending == nil
	if first {
		p.pending = &e
	}
	if p.busy > 0 || p.veiled {
		p.mu.Unlock()
		return first
	}
	e = *p.pending // who was the first to say
	p.status, p.exit = runtime.StoppedStatus, e
	pid = p.pid
	p.mu.Unlock()
	p.letStdin()
	event := pid != 0 && !p.task.repeated(p)
	if event {
		p.task.publish(&apievents.TaskExit{
			ContainerID: p.task.key.id, ID: p.ID(), Pid: pid, ExitStatus: e.Status, ExitedAt: timestamp(e.At),
		})
		fpExited.Hit()
	}
	close(p.done) // nobody waits for what follows: the agent knows of the exit until Delete
	if p.exec == "" {
		p.task.expire()
	}
	if event {
		p.recordTold(e)
	}
	return first
}

// recordTold keeps a restart from telling again. An exec that was deleted
// meanwhile is not told of.
func (p *process) recordTold(e exit) {
	if p.exec != "" && !p.task.hasExec(p) {
		return
	}
	err := p.task.save(func(s *saved) {
		switch {
		case p.exec == "":
			s.Exit = &e
		case p.task.execs[p.exec] == p:
			s.Told = append(s.Told, p.exec)
		}
	})
	if err != nil {
		log.G(p.task.runtime.life).WithError(err).WithField("id", p.task.key.id).Warn("exit is not recorded: a restart tells of it again")
	}
}

// bury ends the waits for a process that was deleted and never ran.
func (p *process) bury() {
	p.mu.Lock()
	stopped := p.status == runtime.StoppedStatus
	if !stopped {
		p.status, p.buried = runtime.StoppedStatus, true
	}
	p.mu.Unlock()
	p.letStdin()
	if !stopped {
		close(p.done)
	}
	p.letStreams()
}

// Start implements runtime.Process.
func (p *process) Start(ctx context.Context) (err error) {
	ctx, span := begin(ctx, "task.Start", p.task.pod, p.task.key.id)
	defer span.End(&err)
	p.hold()
	defer p.let()
	ctx, cancel := steady(ctx)
	defer cancel()
	if p.exec != "" { // a container's first process has its stdio since Create
		if err := p.open(ctx); err != nil {
			return fmt.Errorf("start %s: %w", p, err)
		}
	}
	pid, err := p.start(ctx)
	if err != nil {
		if p.exec != "" {
			p.letStreams()
		}
		return err
	}
	span.Number(trace.Process, int64(pid))
	p.attach()
	fpStarted.Hit()
	p.mu.Lock()
	p.made(pid)
	p.status = runtime.RunningStatus
	p.mu.Unlock()
	if p.exec == "" {
		p.task.publish(&apievents.TaskStart{ContainerID: p.task.key.id, Pid: pid})
		return nil
	}
	p.holdStdin()
	p.task.publish(&apievents.TaskExecStarted{ContainerID: p.task.key.id, ExecID: p.exec, Pid: pid})
	return nil
}

// start has the agent start the process. An agent that died in the call may
// have done it, or the next one does; its State tells.
func (p *process) start(ctx context.Context) (pid uint32, err error) {
	again := false
	err = p.task.call(ctx, func(ctx context.Context, agent *task.Client) error {
		resp, err := agent.Start(ctx, &taskapi.StartRequest{ID: p.task.key.id, ExecID: p.exec})
		if err == nil {
			pid = resp.Pid
			return nil
		}
		if again {
			s, serr := agent.State(ctx, &taskapi.StateRequest{ID: p.task.key.id, ExecID: p.exec})
			if serr == nil && s.Pid != 0 && s.Status != tasktypes.Status_CREATED {
				pid = s.Pid
				return nil
			}
		}
		again = true
		return err
	})
	return pid, err
}

// Kill implements runtime.Process.
func (p *process) Kill(ctx context.Context, signal uint32, all bool) error {
	if p.isDone() {
		if all && p.exec == "" {
			return nil // nothing is left in it
		}
		return fmt.Errorf("kill %s: it has finished already: %w", p, errdefs.ErrNotFound)
	}
	if p.exec == "" {
		p.task.uncover() // who ends it waits for its exit, and not for its output
	}
	patient, cancel := p.task.patient(ctx, killTime)
	defer cancel()
	err := p.task.call(patient, func(ctx context.Context, agent *task.Client) error {
		_, err := agent.Kill(ctx, &taskapi.KillRequest{ID: p.task.key.id, ExecID: p.exec, Signal: signal, All: all})
		return err
	})
	return p.insist(ctx, signal, err)
}

// ResizePty implements runtime.Process.
func (p *process) ResizePty(ctx context.Context, size runtime.ConsoleSize) error {
	return p.task.call(ctx, func(ctx context.Context, agent *task.Client) error {
		_, err := agent.ResizePty(ctx, &taskapi.ResizePtyRequest{ID: p.task.key.id, ExecID: p.exec, Width: size.Width, Height: size.Height})
		return err
	})
}

// CloseIO implements runtime.Process.
func (p *process) CloseIO(ctx context.Context) error {
	p.letStdin()
	if p.exec == "" && p.stdio.Stdin != "" {
		// Or the next daemon would hold it open again.
		if err := p.task.save(func(s *saved) { s.StdinClosed = true }); err != nil {
			return fmt.Errorf("close stdin of %s: %w", p, err)
		}
	}
	if c := p.carried(); c != nil {
		if err := c.CloseStdin(); err != nil {
			return fmt.Errorf("close stdin of %s: %w", p, err)
		}
	}
	return p.task.call(ctx, func(ctx context.Context, agent *task.Client) error {
		_, err := agent.CloseIO(ctx, &taskapi.CloseIORequest{ID: p.task.key.id, ExecID: p.exec, Stdin: true})
		return err
	})
}

// Delete implements runtime.ExecProcess.
func (p *process) Delete(ctx context.Context) (*runtime.Exit, error) {
	if p.exec == "" {
		return nil, fmt.Errorf("delete %s: it is the task's own process: %w", p, errdefs.ErrInvalidArgument)
	}
	ctx, cancel := steady(ctx)
	defer cancel()
	if err := p.task.remove(ctx, p); err != nil {
		return nil, fmt.Errorf("delete %s: %w", p, err)
	}
	p.task.dropExec(p)
	p.bury()
	return p.ended(), nil
}
