package tasks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/runtime"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/task"
)

const (
	space    = "ns"             // containerd's namespace
	podID    = "pod"            // the sandbox
	deadline = 20 * time.Second // of one test
)

// rig is a Runtime with one running sandbox and fakes all around.
type rig struct {
	*Runtime
	testing.TB
	ctx    context.Context
	dir    string
	agent  *agent
	pods   *pods
	mounts *mounts
	log    *journal
	stock  *stock
	boxes  *sandbox.Controller

	// Of the next daemon:
	absent bool            // the sandboxer is not among its plugins
	begin  context.Context // of its start; nil for the test's
}

func newRig(t testing.TB) *rig {
	t.Helper()
	return newRigOf(t, false)
}

// newRigOf is one whose sandbox may be a virtual machine.
func newRigOf(t testing.TB, guests bool) *rig {
	t.Helper()
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), space), deadline)
	t.Cleanup(cancel)
	r := &rig{TB: t, ctx: ctx, dir: t.TempDir(), agent: newAgent(), mounts: &mounts{active: map[string]int{}}, stock: &stock{}}
	r.pods = &pods{agent: r.agent, prepared: map[string]*sandbox.Container{}, fail: map[string]error{}, guests: guests}
	r.open()
	r.must(r.boxes.Create(ctx, core.Sandbox{ID: podID}))
	_, err := r.boxes.Start(ctx, podID)
	r.must(err)
	t.Cleanup(func() {
		r.must(r.Close())
		r.silence()
		r.must(r.boxes.Shutdown(context.WithoutCancel(ctx), podID))
		r.must(r.boxes.Close())
		r.agent.hangUp(false)
	})
	return r
}

// open starts a daemon: its sandboxer and its Runtime.
func (r *rig) open() {
	r.Helper()
	var err error
	r.boxes, err = sandbox.New(r.ctx, sandbox.Config{Name: "fake", Dir: filepath.Join(r.dir, "boxes"), Backend: r.pods})
	r.must(err)
	r.log = &journal{rig: r, grown: make(chan struct{}), hooks: map[string]func(){}}
	var controllers []*sandbox.Controller
	if !r.absent {
		controllers = append(controllers, r.boxes)
	}
	begin := r.begin
	if begin == nil {
		begin = r.ctx
	}
	r.Runtime, err = New(begin, Config{
		Stock: r.stock, Controllers: controllers, Mounts: r.mounts,
		Publisher: r.log, Containers: store{dir: r.dir}, Dir: filepath.Join(r.dir, "tasks"),
	})
	r.must(err)
}

// silence ends what a daemon does beside, as the kernel does: it writes no more.
func (r *rig) silence() {
	for _, t := range r.all() {
		t.writing.Lock()
		t.mu.Lock()
		t.saved.Phase = erased
		t.mu.Unlock()
		t.writing.Unlock()
		t.uncover()
		for _, p := range t.processes() {
			p.letStdin()
			p.letStreams()
		}
	}
}

// crash ends the daemon as SIGKILL does; between runs while it is down.
func (r *rig) crash(between func()) {
	r.Helper()
	r.log.dead()
	r.must(r.Close())
	r.silence()
	r.must(r.boxes.Close())
	r.agent.hangUp(false)
	if between != nil {
		between()
	}
	r.open()
}

func (r *rig) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

const plainSpec = `{"process":{"args":["x"],"cwd":"/"},"root":{"path":"rootfs"}}`

func createOpts(spec string) runtime.CreateOpts {
	return runtime.CreateOpts{
		Spec:      &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: []byte(spec)},
		Rootfs:    []mount.Mount{{Type: "bind", Source: "/image"}},
		SandboxID: podID,
		IO:        runtime.IO{Stdout: "/fifo/out", Stderr: "/fifo/err"},
	}
}

// create makes a task.
func (r *rig) create(id string) runtime.Task {
	r.Helper()
	t, err := r.Create(r.ctx, id, createOpts(plainSpec))
	r.must(err)
	return t
}

// run makes a task and starts it.
func (r *rig) run(id string) runtime.Task {
	r.Helper()
	t := r.create(id)
	r.must(t.Start(r.ctx))
	return t
}

// exec starts a process in a task.
func (r *rig) exec(t runtime.Task, id string) runtime.ExecProcess {
	r.Helper()
	p, err := t.Exec(r.ctx, id, runtime.ExecOpts{Spec: &anypb.Any{}})
	r.must(err)
	r.must(p.Start(r.ctx))
	return p
}

func (r *rig) wait(p runtime.Process) *runtime.Exit {
	r.Helper()
	e, err := p.Wait(r.ctx)
	r.must(err)
	return e
}

func (r *rig) state(p runtime.Process) runtime.State {
	r.Helper()
	s, err := p.State(r.ctx)
	r.must(err)
	return s
}

// clean fails the test if something is left of the task.
func (r *rig) clean(id string) {
	r.Helper()
	if _, err := os.Stat(filepath.Join(r.dir, "tasks", space, id+".json")); !errors.Is(err, os.ErrNotExist) {
		r.Errorf("record of %s: %v", id, err)
	}
	if r.agent.has(id, "") {
		r.Errorf("the agent has container %s", id)
	}
	if c := r.pods.container(id); c != nil {
		r.Errorf("container %s is prepared", id)
	}
	if n := r.mounts.count(id); n != 0 {
		r.Errorf("mounts of %s are active %d times", id, n)
	}
	if _, err := r.Get(r.ctx, id); !errdefs.IsNotFound(err) {
		r.Errorf("get %s: %v", id, err)
	}
}

// journal is the Publisher. It keeps "topic id[/exec] [status]" of each event.
type journal struct {
	rig   *rig
	mu    sync.Mutex
	lines []string
	full  []any
	grown chan struct{}     // closed and replaced with each event
	hooks map[string]func() // by line
	over  bool
}

func (l *journal) Publish(ctx context.Context, topic string, e events.Event) error {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil || ns != space {
		l.rig.Errorf("event %s in namespace %q: %v", topic, ns, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return nil
	}
	if hook := l.hooks[line(e)]; hook != nil {
		hook()
	}
	l.lines, l.full = append(l.lines, line(e)), append(l.full, e)
	close(l.grown)
	l.grown = make(chan struct{})
	return nil
}

func line(e any) string {
	topic := strings.TrimPrefix(runtime.GetTopic(e), "/tasks/")
	switch e := e.(type) {
	case *apievents.TaskExit:
		id := e.ContainerID
		if e.ID != id {
			id += "/" + e.ID
		}
		return fmt.Sprintf("%s %s %d", topic, id, e.ExitStatus)
	case *apievents.TaskDelete:
		return fmt.Sprintf("%s %s %d", topic, e.ContainerID, e.ExitStatus)
	case *apievents.TaskExecAdded:
		return fmt.Sprintf("%s %s/%s", topic, e.ContainerID, e.ExecID)
	case *apievents.TaskExecStarted:
		return fmt.Sprintf("%s %s/%s", topic, e.ContainerID, e.ExecID)
	case interface{ GetContainerID() string }:
		return topic + " " + e.GetContainerID()
	}
	return topic
}

// dead ignores what a daemon publishes that has crashed.
func (l *journal) dead() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
}

// when has a function run within each event of that line.
func (l *journal) when(line string, f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hooks[line] = f
}

// want waits for as many events and compares them.
func (l *journal) want(lines ...string) {
	l.rig.Helper()
	l.await(len(lines))
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Equal(l.lines, lines) {
		l.rig.Errorf("events\n\t%s\nwant\n\t%s", strings.Join(l.lines, "\n\t"), strings.Join(lines, "\n\t"))
	}
}

// await returns once there are n events, or at the test's end.
func (l *journal) await(n int) {
	for {
		l.mu.Lock()
		have, grown := len(l.lines), l.grown
		l.mu.Unlock()
		if have >= n {
			return
		}
		select {
		case <-grown:
		case <-l.rig.ctx.Done():
			return
		}
	}
}

// pods is a backend whose sandboxes share one agent.
type pods struct {
	agent *agent

	mu       sync.Mutex
	last     *pod
	client   *task.Client
	prepared map[string]*sandbox.Container
	fail     map[string]error // by call
	deaf     int              // how many calls of Agent fail before one does not
	guests   bool             // they are virtual machines
}

// vm is a sandbox whose agent is in a guest.
type vm struct{ *pod }

func (v vm) Stream(context.Context) (net.Conn, error) {
	return nil, fmt.Errorf("no streams here: %w", errdefs.ErrUnavailable)
}

func (v vm) Kill(context.Context) error {
	v.pods.end(killedStatus)
	return nil
}

// kind gives a sandbox what its kind has.
func (b *pods) kind(p *pod) sandbox.Sandbox {
	if b.guests {
		return vm{p}
	}
	return p
}

func (b *pods) Create(_ context.Context, s sandbox.Spec) (sandbox.Sandbox, error) {
	return b.kind(b.add(s)), nil
}

func (b *pods) Restore(_ context.Context, s sandbox.Spec, _ json.RawMessage) (sandbox.Sandbox, error) {
	b.mu.Lock()
	err := b.fail["restore"]
	former := b.last
	b.mu.Unlock()
	p := b.add(s)
	if former != nil && former.isOver() {
		p.end(former.exit.Status)
	}
	return b.kind(p), err
}

func (b *pods) add(sandbox.Spec) *pod {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = &pod{pods: b, over: make(chan struct{})}
	return b.last
}

func (b *pods) failing(call string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail[call] = err
}

func (b *pods) container(id string) *sandbox.Container {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.prepared[id]
}

// end ends the sandbox, and with it its agent and all processes.
func (b *pods) end(status uint32) {
	b.agent.mu.Lock()
	clear(b.agent.procs)
	b.agent.mu.Unlock()
	b.mu.Lock()
	p := b.last
	b.mu.Unlock()
	p.end(status)
	b.agent.hangUp(true)
}

type pod struct {
	pods *pods
	once sync.Once
	over chan struct{}
	exit sandbox.Exit
}

func (p *pod) end(status uint32) {
	p.once.Do(func() {
		p.exit = sandbox.Exit{Status: status, At: exitTime}
		close(p.over)
	})
}

func (p *pod) isOver() bool {
	select {
	case <-p.over:
		return true
	default:
		return false
	}
}

func (p *pod) Start(context.Context) error { return nil }

func (p *pod) Agent(ctx context.Context) (*task.Client, error) {
	b := p.pods
	b.mu.Lock()
	err, client := b.fail["agent"], b.client
	if b.deaf > 0 {
		b.deaf--
		err = fmt.Errorf("the agent does not answer: %w", errdefs.ErrUnavailable)
	}
	b.mu.Unlock()
	if p.isOver() {
		err = fmt.Errorf("the sandbox is over: %w", errdefs.ErrUnavailable)
	}
	if err != nil {
		return nil, err
	}
	if client != nil {
		select {
		case <-client.Done():
		default:
			return client, nil
		}
	}
	if client, err = b.agent.dial(ctx); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.client = client
	return client, nil
}

func (p *pod) Prepare(_ context.Context, c *sandbox.Container) (sandbox.Bundle, error) {
	p.pods.mu.Lock()
	defer p.pods.mu.Unlock()
	p.pods.prepared[c.ID] = c
	return sandbox.Bundle{Path: "/bundle/" + c.ID}, p.pods.fail["prepare"]
}

func (p *pod) Release(_ context.Context, id string) error {
	p.pods.mu.Lock()
	defer p.pods.mu.Unlock()
	if err := p.pods.fail["release"]; err != nil {
		return err
	}
	delete(p.pods.prepared, id)
	return nil
}

func (p *pod) Stop(context.Context) error { p.end(0); return nil }

func (p *pod) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-p.over:
		return p.exit, nil
	case <-ctx.Done():
		return sandbox.Exit{}, ctx.Err()
	}
}

func (p *pod) Delete(context.Context) error   { return nil }
func (p *pod) Save() (json.RawMessage, error) { return json.RawMessage(`{}`), nil }

// mounts is a mount manager.
type mounts struct {
	mount.Manager
	mu     sync.Mutex
	active map[string]int
	labels map[string]string // of the last
	fail   error
}

func (m *mounts) Activate(_ context.Context, id string, _ []mount.Mount, opts ...mount.ActivateOpt) (mount.ActivationInfo, error) {
	var o mount.ActivateOptions
	for _, opt := range opts {
		opt(&o)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return mount.ActivationInfo{}, m.fail
	}
	m.labels = maps.Clone(o.Labels)
	if m.active[id] > 0 {
		return mount.ActivationInfo{}, errdefs.ErrAlreadyExists
	}
	m.active[id]++
	return info(id), nil
}

func info(id string) mount.ActivationInfo {
	return mount.ActivationInfo{Name: id, System: []mount.Mount{{Type: "bind", Source: "/activated"}}}
}

func (m *mounts) Info(_ context.Context, id string) (mount.ActivationInfo, error) {
	return info(id), nil
}

func (m *mounts) Deactivate(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.active[id] == 0 {
		return errdefs.ErrNotFound
	}
	delete(m.active, id)
	return nil
}

func (m *mounts) count(id string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.active[id]
}

// store is the metadata of containers: that their logs are in dir.
type store struct {
	containers.Store
	dir string
}

func (s store) Get(_ context.Context, id string) (containers.Container, error) {
	meta, err := json.Marshal(map[string]any{"Metadata": map[string]string{"LogPath": filepath.Join(s.dir, id+".log")}})
	return containers.Container{Extensions: map[string]typeurl.Any{criMetadata: &anypb.Any{Value: meta}}}, err
}

// stock is the runtime of everything that is not ours.
type stock struct {
	mu    sync.Mutex
	calls []string
}

func (s *stock) call(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, name)
}

func (s *stock) ID() string { return "io.containerd.runtime.v2.task" }

func (s *stock) Create(_ context.Context, id string, _ runtime.CreateOpts) (runtime.Task, error) {
	s.call("create " + id)
	return stockTask{}, nil
}

func (s *stock) Get(_ context.Context, id string) (runtime.Task, error) {
	if id == "theirs" {
		return stockTask{}, nil
	}
	return nil, fmt.Errorf("stock task %s: %w", id, errdefs.ErrNotFound)
}

func (s *stock) Tasks(context.Context, bool) ([]runtime.Task, error) {
	return []runtime.Task{stockTask{}}, nil
}

func (s *stock) Delete(_ context.Context, id string) (*runtime.Exit, error) {
	s.call("delete " + id)
	return &runtime.Exit{Status: 77}, nil
}

func (s *stock) PluginInfo(context.Context, any) (any, error) { return "stock", nil }

type stockTask struct{ runtime.Task }

func (stockTask) ID() string { return "theirs" }
