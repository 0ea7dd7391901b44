package tasks

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/containerd-kuasar/containerd-kuasar/task"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	calls "github.com/containerd-kuasar/containerd-kuasar/task/phase"
)

// agent is an agent in memory. It keeps its containers while its connections
// come and go, as a worker does that outlives the daemon.
type agent struct {
	taskapi.TTRPCTaskService // what is not played
	api.AgentService

	mu    sync.Mutex
	cond  sync.Cond
	pid   uint32 // of the last process
	procs map[procKey]*api.Process
	kept  map[string]string // what is retained of a container's stdout
	calls []string
	fail  map[string]error         // by call
	hooks map[string]func()        // by call: runs before the answer
	subs  map[chan *api.Event]bool // of the events
	conns []io.Closer
	down  bool

	phases calls.Log
}

type procKey struct {
	key
	exec string
}

func newAgent() *agent {
	a := &agent{pid: 100, procs: map[procKey]*api.Process{}, kept: map[string]string{}, fail: map[string]error{}, hooks: map[string]func(){}, subs: map[chan *api.Event]bool{}}
	a.cond.L = &a.mu
	return a
}

// dial connects to the agent; it waits while it is down.
func (a *agent) dial(ctx context.Context) (*task.Client, error) {
	stop := context.AfterFunc(ctx, func() { a.mu.Lock(); defer a.mu.Unlock(); a.cond.Broadcast() })
	defer stop()
	a.mu.Lock()
	for a.down && ctx.Err() == nil {
		a.cond.Wait()
	}
	a.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("dial: %w: %w", err, errdefs.ErrUnavailable)
	}
	server, err := ttrpc.NewServer(ttrpc.WithChainUnaryServerInterceptor(
		func(ctx context.Context, u ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, m ttrpc.Method) (any, error) {
			resp, err := m(ctx, u)
			return resp, errgrpc.ToGRPC(err)
		}, a.phases.Interceptor))
	if err != nil {
		return nil, err
	}
	taskapi.RegisterTTRPCTaskService(server, a)
	api.RegisterAgentService(server, a)
	near, far, err := socketpair()
	if err != nil {
		return nil, err
	}
	l := &listener{conns: make(chan net.Conn, 1), done: make(chan struct{})}
	l.conns <- far
	go func() { _ = server.Serve(context.Background(), l) }()
	a.mu.Lock()
	a.conns = append(a.conns, far, server)
	a.mu.Unlock()
	return task.NewClient(ctx, near)
}

// socketpair is not net.Pipe: that has no buffer, and ttrpc's two ends may wait
// for each other to read.
func socketpair() (near, far net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	conns := [2]net.Conn{}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		defer f.Close()
		if conns[i], err = net.FileConn(f); err != nil {
			return nil, nil, err
		}
	}
	return conns[0], conns[1], nil
}

// hangUp ends all connections. If the agent is down no new ones are made
// until rise.
func (a *agent) hangUp(down bool) {
	a.mu.Lock()
	conns := a.conns
	a.conns, a.down = nil, down
	a.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
}

func (a *agent) rise() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.down = false
	a.cond.Broadcast()
}

// listener hands out one connection.
type listener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *listener) Addr() net.Addr { return &net.UnixAddr{} }

// enter notes a call and does what the test wants of it.
func (a *agent) enter(ctx context.Context, name, id, exec string) (procKey, error) {
	ns, _ := namespaces.Namespace(ctx)
	a.mu.Lock()
	a.calls = append(a.calls, name)
	hook, err := a.hooks[name], a.fail[name]
	a.mu.Unlock()
	if hook != nil {
		hook()
	}
	return procKey{key{ns, id}, exec}, err
}

// on has a function run within each call of that name.
func (a *agent) on(name string, f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hooks[name] = f
}

func (a *agent) failing(name string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fail[name] = err
}

func (a *agent) count(name string) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.calls {
		if c == name {
			n++
		}
	}
	return n
}

// find is called with a.mu held.
func (a *agent) find(k procKey) (*api.Process, error) {
	p := a.procs[k]
	if p == nil {
		return nil, fmt.Errorf("process %s of container %s: %w", k.exec, k.id, errdefs.ErrNotFound)
	}
	return p, nil
}

func (a *agent) has(id, exec string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.procs[procKey{key{space, id}, exec}] != nil
}

// add makes a process known. a.mu is held.
func (a *agent) add(k procKey, status api.Status, pid uint32) *api.Process {
	p := &api.Process{Namespace: k.namespace, ContainerId: k.id, ExecId: k.exec, Status: status, Pid: pid}
	a.procs[k] = p
	return p
}

// publish is called with a.mu held.
func (a *agent) publish(e *api.Event) {
	for c := range a.subs {
		c <- e
	}
}

// exit ends a process.
func (a *agent) exit(id, exec string, status uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.end(procKey{key{space, id}, exec}, status)
}

// end is called with a.mu held.
func (a *agent) end(k procKey, status uint32) {
	p := a.procs[k]
	if p == nil || p.Status == api.Status_STATUS_STOPPED {
		return
	}
	p.Status, p.Exit = api.Status_STATUS_STOPPED, &api.Exit{Status: status, ExitedAt: timestamppb.New(exitTime)}
	a.cond.Broadcast()
	a.publish(&api.Event{Namespace: k.namespace, ContainerId: k.id, Event: &api.Event_Exit{
		Exit: &api.ProcessExit{ExecId: k.exec, Pid: p.Pid, Exit: p.Exit},
	}})
}

// exitTime is when everything exits.
var exitTime = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

func (a *agent) oom(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.publish(&api.Event{Namespace: space, ContainerId: id, Event: &api.Event_Oom{Oom: &api.OutOfMemory{}}})
}

func (a *agent) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	k, err := a.enter(ctx, "create", r.ID, "")
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.procs[k] != nil {
		return nil, errdefs.ErrAlreadyExists
	}
	a.pid++
	p := a.add(k, api.Status_STATUS_CREATED, a.pid)
	p.Stdin, p.Stdout, p.Stderr, p.Terminal = r.Stdin, r.Stdout, r.Stderr, r.Terminal
	return &taskapi.CreateTaskResponse{Pid: p.Pid}, nil
}

func (a *agent) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	k, err := a.enter(ctx, "start", r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	p, err := a.find(k)
	if err != nil {
		return nil, err
	}
	if p.Status != api.Status_STATUS_CREATED {
		return nil, fmt.Errorf("cannot start a process that is %s: %w", p.Status, errdefs.ErrFailedPrecondition)
	}
	if p.Status = api.Status_STATUS_RUNNING; p.Pid == 0 {
		a.pid++
		p.Pid = a.pid
	}
	hook := a.hooks["started"]
	pid := p.Pid
	if hook != nil {
		a.mu.Unlock()
		hook()
		a.mu.Lock()
	}
	return &taskapi.StartResponse{Pid: pid}, nil
}

func (a *agent) Exec(ctx context.Context, r *taskapi.ExecProcessRequest) (*emptypb.Empty, error) {
	k, err := a.enter(ctx, "exec", r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, err := a.find(procKey{k.key, ""}); err != nil {
		return nil, err
	}
	if a.procs[k] != nil {
		return nil, errdefs.ErrAlreadyExists
	}
	a.add(k, api.Status_STATUS_CREATED, 0).Stdin = r.Stdin
	return &emptypb.Empty{}, nil
}

func (a *agent) Kill(ctx context.Context, r *taskapi.KillRequest) (*emptypb.Empty, error) {
	k, err := a.enter(ctx, "kill", r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	p, err := a.find(k)
	if err != nil {
		return nil, err
	}
	if p.Status == api.Status_STATUS_STOPPED {
		return nil, fmt.Errorf("process already finished: %w", errdefs.ErrNotFound)
	}
	a.end(k, 128+r.Signal)
	return &emptypb.Empty{}, nil
}

func (a *agent) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	k, err := a.enter(ctx, "wait", r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for {
		p, err := a.find(k)
		if err != nil {
			return nil, err
		}
		if p.Exit != nil {
			return &taskapi.WaitResponse{ExitStatus: p.Exit.Status, ExitedAt: p.Exit.ExitedAt}, nil
		}
		a.cond.Wait()
	}
}

func (a *agent) State(ctx context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	k, err := a.enter(ctx, "state", r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	p, err := a.find(k)
	if err != nil {
		return nil, err
	}
	return &taskapi.StateResponse{Pid: p.Pid, Status: map[api.Status]tasktypes.Status{
		api.Status_STATUS_CREATED: tasktypes.Status_CREATED,
		api.Status_STATUS_RUNNING: tasktypes.Status_RUNNING,
		api.Status_STATUS_PAUSED:  tasktypes.Status_PAUSED,
		api.Status_STATUS_STOPPED: tasktypes.Status_STOPPED,
	}[p.Status]}, nil
}

func (a *agent) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	k, err := a.enter(ctx, "delete", r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	p, err := a.find(k)
	if err != nil {
		return nil, err
	}
	switch p.Status {
	case api.Status_STATUS_CREATED:
		if p.Pid != 0 {
			a.end(k, 137)
		}
	case api.Status_STATUS_STOPPED:
	default:
		return nil, fmt.Errorf("cannot delete a process that is %s: %w", p.Status, errdefs.ErrFailedPrecondition)
	}
	for other := range a.procs {
		if other == k || k.exec == "" && other.key == k.key {
			delete(a.procs, other)
		}
	}
	a.cond.Broadcast()
	resp := &taskapi.DeleteResponse{Pid: p.Pid}
	if p.Exit != nil {
		resp.ExitStatus, resp.ExitedAt = p.Exit.Status, p.Exit.ExitedAt
	}
	return resp, nil
}

func (a *agent) freeze(ctx context.Context, name, id string, to api.Status) (*emptypb.Empty, error) {
	k, err := a.enter(ctx, name, id, "")
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	p, err := a.find(k)
	if err == nil {
		p.Status = to
	}
	return &emptypb.Empty{}, err
}

func (a *agent) Pause(ctx context.Context, r *taskapi.PauseRequest) (*emptypb.Empty, error) {
	return a.freeze(ctx, "pause", r.ID, api.Status_STATUS_PAUSED)
}

func (a *agent) Resume(ctx context.Context, r *taskapi.ResumeRequest) (*emptypb.Empty, error) {
	return a.freeze(ctx, "resume", r.ID, api.Status_STATUS_RUNNING)
}

// plain answers a call that changes nothing here.
func (a *agent) plain(ctx context.Context, name, id, exec string) error {
	k, err := a.enter(ctx, name, id, exec)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	_, err = a.find(k)
	return err
}

func (a *agent) ResizePty(ctx context.Context, r *taskapi.ResizePtyRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, a.plain(ctx, "resize", r.ID, r.ExecID)
}

func (a *agent) CloseIO(ctx context.Context, r *taskapi.CloseIORequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, a.plain(ctx, "close", r.ID, r.ExecID)
}

func (a *agent) Update(ctx context.Context, r *taskapi.UpdateTaskRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, a.plain(ctx, "update", r.ID, "")
}

func (a *agent) Checkpoint(ctx context.Context, r *taskapi.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, a.plain(ctx, "checkpoint", r.ID, "")
}

func (a *agent) Stats(ctx context.Context, r *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	return &taskapi.StatsResponse{}, a.plain(ctx, "stats", r.ID, "")
}

func (a *agent) Pids(ctx context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	if err := a.plain(ctx, "pids", r.ID, ""); err != nil {
		return nil, err
	}
	return &taskapi.PidsResponse{Processes: []*tasktypes.ProcessInfo{{Pid: 101}}}, nil
}

func (a *agent) Info(context.Context, *api.InfoRequest) (*api.InfoResponse, error) {
	return &api.InfoResponse{Protocol: api.Protocol, Version: "fake"}, nil
}

func (a *agent) List(ctx context.Context, _ *api.ListRequest) (*api.ListResponse, error) {
	if _, err := a.enter(ctx, "list", "", ""); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	resp := &api.ListResponse{}
	for _, p := range a.procs {
		resp.Processes = append(resp.Processes, &api.Process{
			Namespace: p.Namespace, ContainerId: p.ContainerId, ExecId: p.ExecId,
			Pid: p.Pid, Status: p.Status, Exit: p.Exit, Stdin: p.Stdin, Stdout: p.Stdout, Stderr: p.Stderr, Terminal: p.Terminal,
		})
	}
	return resp, nil
}

func (a *agent) Retained(ctx context.Context, r *api.RetainedRequest) (*api.RetainedResponse, error) {
	if _, err := a.enter(ctx, "retained", r.ContainerId, ""); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	ended := false
	for k, p := range a.procs {
		ended = ended || k.id == r.ContainerId && k.exec == "" && p.Exit != nil
	}
	return &api.RetainedResponse{Stdout: &api.Output{Data: []byte(a.kept[r.ContainerId]), Complete: true}, Ended: ended}, nil
}

func (a *agent) Events(ctx context.Context, _ *api.EventsRequest, s api.Agent_EventsServer) error {
	if _, err := a.enter(ctx, "events", "", ""); err != nil {
		return errgrpc.ToGRPC(err)
	}
	c := make(chan *api.Event, 64)
	a.mu.Lock()
	a.subs[c] = true
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.subs, c)
	}()
	if err := s.Send(&api.Event{}); err != nil {
		return err
	}
	for {
		select {
		case e, ok := <-c:
			if !ok {
				return nil
			}
			if err := s.Send(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// lose forgets a process as an agent does that found no trace of it.
func (a *agent) lose(id, exec string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.procs, procKey{key{space, id}, exec})
}
