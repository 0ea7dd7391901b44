package tasks

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/runtime"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
	criapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/sandboxtest"
	"github.com/containerd-kuasar/containerd-kuasar/task"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// agent is a fake: it knows processes and does nothing. Tests call only what it
// serves itself.
type agent struct {
	taskapi.TTRPCTaskService
	onStart func(a *agent) // runs within Start, before it answers

	mu        sync.Mutex
	processes map[string]*api.Process
	streams   []chan *api.Event
}

func newAgent() *agent { return &agent{processes: map[string]*api.Process{}} }

func (a *agent) Info(context.Context, *api.InfoRequest) (*api.InfoResponse, error) {
	return &api.InfoResponse{Protocol: api.Protocol}, nil
}

func (a *agent) List(context.Context, *api.ListRequest) (*api.ListResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	resp := &api.ListResponse{}
	for _, p := range a.processes {
		resp.Processes = append(resp.Processes, p)
	}
	return resp, nil
}

func (a *agent) Retained(context.Context, *api.RetainedRequest) (*api.RetainedResponse, error) {
	return &api.RetainedResponse{}, nil
}

func (a *agent) Events(ctx context.Context, _ *api.EventsRequest, s api.Agent_EventsServer) error {
	c := make(chan *api.Event, 16)
	a.mu.Lock()
	a.streams = append(a.streams, c)
	a.mu.Unlock()
	if err := s.Send(&api.Event{}); err != nil {
		return err
	}
	for {
		select {
		case e := <-c:
			if err := s.Send(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (a *agent) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.processes[r.ID] = &api.Process{Namespace: namespace, ContainerId: r.ID, Pid: 42, Status: api.Status_STATUS_CREATED}
	return &taskapi.CreateTaskResponse{Pid: 42}, nil
}

func (a *agent) Start(_ context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	a.mu.Lock()
	a.processes[r.ID].Status = api.Status_STATUS_RUNNING
	a.mu.Unlock()
	if a.onStart != nil {
		a.onStart(a)
	}
	return &taskapi.StartResponse{Pid: 42}, nil
}

func (a *agent) Delete(_ context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.processes[r.ID]
	if p == nil {
		return nil, errdefs.ErrNotFound
	}
	delete(a.processes, r.ID)
	resp := &taskapi.DeleteResponse{Pid: p.Pid}
	if p.Exit != nil {
		resp.ExitStatus, resp.ExitedAt = p.Exit.Status, p.Exit.ExitedAt
	}
	return resp, nil
}

func (a *agent) Wait(_ context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.processes[r.ID]; p == nil || p.Exit == nil {
		return nil, errdefs.ErrNotFound
	}
	return &taskapi.WaitResponse{}, nil
}

func (a *agent) Kill(context.Context, *taskapi.KillRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

// exit ends the process of a container. Without tell only List knows.
func (a *agent) exit(id string, status uint32, tell bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.processes[id]
	p.Status, p.Exit = api.Status_STATUS_STOPPED, &api.Exit{Status: status, ExitedAt: timestamppb.Now()}
	if !tell {
		return
	}
	for _, c := range a.streams {
		c <- &api.Event{Namespace: p.Namespace, ContainerId: id, Event: &api.Event_Exit{
			Exit: &api.ProcessExit{Pid: p.Pid, Exit: p.Exit},
		}}
	}
}

// stock is a runtime without tasks.
type stock struct{ Inner }

func (stock) ID() string { return "stock" }
func (stock) Create(_ context.Context, id string, _ runtime.CreateOpts) (runtime.Task, error) {
	return nil, fmt.Errorf("stock creates %s", id)
}
func (stock) Get(context.Context, string) (runtime.Task, error)     { return nil, errdefs.ErrNotFound }
func (stock) Tasks(context.Context, bool) ([]runtime.Task, error)   { return nil, nil }
func (stock) Delete(context.Context, string) (*runtime.Exit, error) { return nil, errdefs.ErrNotFound }

// store has no containers.
type store struct{ containers.Store }

func (store) Get(context.Context, string) (containers.Container, error) {
	return containers.Container{}, errdefs.ErrNotFound
}

// publisher collects events.
type publisher struct {
	mu     sync.Mutex
	topics []string
	grown  chan struct{}
}

func (p *publisher) Publish(_ context.Context, topic string, _ events.Event) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.topics = append(p.topics, topic)
	close(p.grown)
	p.grown = make(chan struct{})
	return nil
}

// fixture is a Runtime with one running sandbox, "pod".
type fixture struct {
	*Runtime
	t       *testing.T
	ctx     context.Context
	dir     string
	memory  *sandboxtest.Memory
	events  *publisher
	sandbox *sandbox.Controller

	mu     sync.Mutex
	client *task.Client
	server *ttrpc.Server
}

func newFixture(t *testing.T, a *agent) *fixture {
	t.Helper()
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), "test"), time.Minute)
	t.Cleanup(cancel)
	f := &fixture{t: t, ctx: ctx, dir: t.TempDir(), memory: &sandboxtest.Memory{}}
	f.memory.OnAgent = func(context.Context) (*task.Client, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.client == nil {
			return nil, errdefs.ErrUnavailable
		}
		return f.client, nil
	}
	f.connect(a)
	f.open()
	f.must(f.sandbox.Create(ctx, core.Sandbox{ID: "pod"}, core.WithOptions(&criapi.PodSandboxConfig{})))
	_, err := f.sandbox.Start(ctx, "pod")
	f.must(err)
	return f
}

func (f *fixture) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// open starts the Runtime as a daemon does.
func (f *fixture) open() {
	f.t.Helper()
	var err error
	f.sandbox, err = sandbox.New(f.ctx, sandbox.Config{Name: "memory", Dir: f.dir + "/boxes", Backend: f.memory})
	f.must(err)
	f.events = &publisher{grown: make(chan struct{})}
	f.Runtime, err = New(f.ctx, Config{
		Stock: stock{}, Controllers: []*sandbox.Controller{f.sandbox}, Publisher: f.events, Containers: store{}, Dir: f.dir + "/tasks",
	})
	f.must(err)
}

// connect makes a the sandbox's agent, in place of any other.
func (f *fixture) connect(a *agent) {
	f.t.Helper()
	l, err := net.Listen("unix", f.dir+"/agent")
	f.must(err)
	server, err := ttrpc.NewServer()
	f.must(err)
	taskapi.RegisterTTRPCTaskService(server, a)
	api.RegisterAgentService(server, a)
	go server.Serve(f.ctx, l)
	conn, err := net.Dial("unix", f.dir+"/agent")
	f.must(err)
	client, err := task.NewClient(f.ctx, conn)
	f.must(err)
	f.must(os.Remove(f.dir + "/agent"))
	f.mu.Lock()
	f.client, f.server = client, server
	f.mu.Unlock()
	f.t.Cleanup(func() { server.Close() })
}

// disconnect kills the agent.
func (f *fixture) disconnect() {
	f.mu.Lock()
	client, server := f.client, f.server
	f.client = nil
	f.mu.Unlock()
	server.Close()
	client.Close()
}

func (f *fixture) create(id string) runtime.Task {
	f.t.Helper()
	t, err := f.Create(f.ctx, id, options("pod"))
	f.must(err)
	return t
}

func options(pod string) runtime.CreateOpts {
	return runtime.CreateOpts{SandboxID: pod, Spec: &anypb.Any{Value: []byte(`{"process":{"args":["true"]},"root":{"path":"rootfs"}}`)}}
}

// awaitEvents waits for these events and no others.
func (f *fixture) awaitEvents(want ...string) {
	f.t.Helper()
	for {
		f.events.mu.Lock()
		got, grown := slices.Clone(f.events.topics), f.events.grown
		f.events.mu.Unlock()
		for i := range got {
			got[i] = got[i][len("/tasks/"):]
		}
		if slices.Equal(got, want) {
			return
		}
		if len(got) >= len(want) {
			f.t.Fatalf("events %v, want %v", got, want)
		}
		select {
		case <-grown:
		case <-f.ctx.Done():
			f.t.Fatalf("events %v, want %v: %v", got, want, context.Cause(f.ctx))
		}
	}
}

func (f *fixture) wait(t runtime.Process) *runtime.Exit {
	f.t.Helper()
	e, err := t.Wait(f.ctx)
	f.must(err)
	return e
}

func (f *fixture) noRecords() {
	f.t.Helper()
	entries, err := os.ReadDir(f.dir + "/tasks/test")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		f.t.Fatal(err)
	}
	if len(entries) > 0 {
		f.t.Errorf("records left: %v", entries)
	}
}
