package tasks

import (
	"context"
	"fmt"
	"sync"

	apievents "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/task"
)

var fpStarted = failpoint.New("tasks/start/started")

var _ runtime.ExecProcess = (*process)(nil)

// process is a task's first process, or an exec. Its state is a cache of its
// agent's: State and Wait never ask.
type process struct {
	task  *Task
	exec  string // empty for the first process
	stdio runtime.IO
	done  chan struct{} // closed when it has exited

	mu     sync.Mutex
	status runtime.Status
	pid    uint32
	exit   exit // valid after done

	// While a call runs whose event must come before that of an exit, the
	// exit waits here.
	busy    bool
	pending *exit
}

func newProcess(t *Task, exec string, stdio runtime.IO) *process {
	return &process{task: t, exec: exec, stdio: stdio, done: make(chan struct{}), status: runtime.CreatedStatus}
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

// Wait implements runtime.Process.
func (p *process) Wait(ctx context.Context) (*runtime.Exit, error) {
	select {
	case <-p.done:
		return p.ended(), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for %s: %w", p, ctx.Err())
	}
}

func (p *process) ended() *runtime.Exit {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &runtime.Exit{Pid: p.pid, Status: p.exit.Status, Timestamp: p.exit.At}
}

// hold makes exits wait until let.
func (p *process) hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy = true
}

func (p *process) let() {
	p.mu.Lock()
	p.busy = false
	pending := p.pending
	p.pending = nil
	p.mu.Unlock()
	if pending != nil {
		p.exited(*pending)
	}
}

// exited takes note of an exit and publishes it, once.
func (p *process) exited(e exit) {
	p.mu.Lock()
	if p.status == runtime.StoppedStatus {
		p.mu.Unlock()
		return
	}
	if p.busy {
		p.pending = &e
		p.mu.Unlock()
		return
	}
	p.status, p.exit = runtime.StoppedStatus, e
	pid := p.pid
	p.mu.Unlock()
	p.task.publish(&apievents.TaskExit{
		ContainerID: p.task.key.id, ID: p.ID(), Pid: pid, ExitStatus: e.Status, ExitedAt: timestamppb.New(e.At),
	})
	if p.exec == "" {
		if err := p.task.save(func(s *saved) { s.Exit = &e }); err != nil {
			log.G(p.task.runtime.life).WithError(err).WithField("id", p.task.key.id).Warn("exit is not recorded: a restart publishes it again")
		}
	}
	close(p.done)
}

// Start implements runtime.Process.
func (p *process) Start(ctx context.Context) error {
	p.hold()
	defer p.let()
	agent, err := p.task.agent(ctx)
	if err != nil {
		return fmt.Errorf("start %s: %w", p, err)
	}
	resp, err := agent.Start(ctx, &taskapi.StartRequest{ID: p.task.key.id, ExecID: p.exec})
	if err != nil {
		return errgrpc.ToNative(err)
	}
	fpStarted.Hit()
	p.mu.Lock()
	p.pid, p.status = resp.Pid, runtime.RunningStatus
	p.mu.Unlock()
	if p.exec == "" {
		p.task.publish(&apievents.TaskStart{ContainerID: p.task.key.id, Pid: resp.Pid})
	} else {
		p.task.publish(&apievents.TaskExecStarted{ContainerID: p.task.key.id, ExecID: p.exec, Pid: resp.Pid})
	}
	return nil
}

// Kill implements runtime.Process.
func (p *process) Kill(ctx context.Context, signal uint32, all bool) error {
	select {
	case <-p.done:
		if !all {
			return fmt.Errorf("kill %s: it has finished already: %w", p, errdefs.ErrNotFound)
		}
	default:
	}
	return p.task.call(ctx, func(agent *task.Client) error {
		_, err := agent.Kill(ctx, &taskapi.KillRequest{ID: p.task.key.id, ExecID: p.exec, Signal: signal, All: all})
		return err
	})
}

// ResizePty implements runtime.Process.
func (p *process) ResizePty(ctx context.Context, size runtime.ConsoleSize) error {
	return p.task.call(ctx, func(agent *task.Client) error {
		_, err := agent.ResizePty(ctx, &taskapi.ResizePtyRequest{ID: p.task.key.id, ExecID: p.exec, Width: size.Width, Height: size.Height})
		return err
	})
}

// CloseIO implements runtime.Process.
func (p *process) CloseIO(ctx context.Context) error {
	return p.task.call(ctx, func(agent *task.Client) error {
		_, err := agent.CloseIO(ctx, &taskapi.CloseIORequest{ID: p.task.key.id, ExecID: p.exec, Stdin: true})
		return err
	})
}

// Delete implements runtime.ExecProcess.
func (p *process) Delete(ctx context.Context) (*runtime.Exit, error) {
	if p.exec == "" {
		return nil, fmt.Errorf("delete %s: it is the task's own process: %w", p, errdefs.ErrInvalidArgument)
	}
	if err := p.task.remove(ctx, p); err != nil {
		return nil, fmt.Errorf("delete %s: %w", p, err)
	}
	p.task.mu.Lock()
	delete(p.task.execs, p.exec)
	p.task.mu.Unlock()
	return p.ended(), nil
}
