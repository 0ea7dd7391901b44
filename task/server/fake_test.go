package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/task/stdio"
	"github.com/containerd-kuasar/containerd-kuasar/task/wire"
)

const deadline = 10 * time.Second

// fake is a Runtime whose processes are real children, so that the Reaper is
// the real one, but whose containers are nothing.
type fake struct {
	mu    sync.Mutex
	procs map[string][]*fakeProcess // by container
	calls []string
	fail  map[string]error         // by call
	hang  map[string]chan struct{} // by call: waits until closed
	told  chan string              // of calls that hang, if made
}

// fakeProcess exits with the code that is written to it.
type fakeProcess struct {
	pid   int
	stdin *os.File
}

func newFake() *fake {
	return &fake{procs: map[string][]*fakeProcess{}, fail: map[string]error{}, hang: map[string]chan struct{}{}, told: make(chan string, 16)}
}

func (f *fake) call(name string) error {
	f.mu.Lock()
	f.calls = append(f.calls, name)
	err, hang := f.fail[name], f.hang[name]
	f.mu.Unlock()
	if hang != nil {
		f.told <- name
		<-hang
	}
	return err
}

func (f *fake) count(name string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if c == name {
			n++
		}
	}
	return n
}

func (f *fake) spawn(id string) (Started, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return Started{}, err
	}
	defer r.Close()
	p, err := os.StartProcess("/bin/sh", []string{"sh", "-c", "read code; exit $code"}, &os.ProcAttr{Files: []*os.File{r, nil, os.Stderr}})
	if err != nil {
		return Started{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	pid := p.Pid // Release forgets it
	f.procs[id] = append(f.procs[id], &fakeProcess{pid, w})
	return Started{Pid: pid}, p.Release()
}

// exit ends the i-th process of a container.
func (f *fake) exit(id string, i, code int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fmt.Fprintln(f.procs[id][i].stdin, code)
}

func (f *fake) Create(_ context.Context, ref Ref, p Process) (Started, error) {
	if err := f.call("create"); err != nil {
		return Started{}, err
	}
	return f.spawn(ref.ID)
}

func (f *fake) Start(context.Context, Ref, *os.File) error { return f.call("start") }

func (f *fake) Exec(_ context.Context, ref Ref, p Process) (Started, error) {
	if err := f.call("exec"); err != nil {
		return Started{}, err
	}
	return f.spawn(ref.ID)
}

func (f *fake) Signal(_ context.Context, ref Ref, sig unix.Signal) error {
	err := f.call("signal")
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.procs[ref.ID] {
		_ = unix.Kill(p.pid, sig)
	}
	return err
}

func (f *fake) Pids(context.Context, Ref) ([]int, error) { return nil, f.call("pids") }

func (f *fake) Delete(_ context.Context, ref Ref) error {
	if err := f.call("delete"); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.procs[ref.ID] {
		_ = unix.Kill(p.pid, unix.SIGKILL)
		p.stdin.Close()
	}
	delete(f.procs, ref.ID)
	return nil
}

// full is a fake that has all that a Runtime may have beside.
type full struct {
	*fake
	paused bool
}

func (f *full) Pause(context.Context, Ref) error          { return f.call("pause") }
func (f *full) Resume(context.Context, Ref) error         { return f.call("resume") }
func (f *full) Paused(context.Context, Ref) (bool, error) { return f.paused, f.call("paused") }
func (f *full) Update(context.Context, Ref, *specs.LinuxResources) error {
	return f.call("update")
}
func (f *full) Checkpoint(context.Context, Ref, string, *options.CheckpointOptions) error {
	return f.call("checkpoint")
}
func (f *full) Restore(_ context.Context, ref Ref, p Process, image string) (Started, error) {
	if err := f.call("restore"); err != nil {
		return Started{}, err
	}
	return f.spawn(ref.ID)
}

// pipes is an Opener of stdio that does nothing.
type pipes struct {
	mu     sync.Mutex
	open   int
	drains map[string]chan struct{} // by container: Exited waits until closed
	fail   error
}

func (o *pipes) Open(_ context.Context, cfg stdio.Config) (stdio.IO, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.fail != nil {
		return nil, o.fail
	}
	o.open++
	return &pipe{opener: o, drain: o.drains[cfg.Stdout]}, nil
}

func (o *pipes) Reopen(ctx context.Context, cfg stdio.Config, master *os.File) (stdio.IO, error) {
	return o.Open(ctx, cfg)
}

func (o *pipes) left() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.open
}

type pipe struct {
	opener *pipes
	drain  chan struct{}
	once   sync.Once
	closed int // stdin
}

func (p *pipe) Files() (stdin, stdout, stderr *os.File) { return nil, nil, nil }
func (p *pipe) Started()                                {}
func (p *pipe) Attach(m *os.File) error                 { return m.Close() }
func (p *pipe) Resize(width, height uint32) error       { return errdefs.ErrFailedPrecondition }
func (p *pipe) CloseStdin() error                       { p.closed++; return nil }
func (p *pipe) Exited(ctx context.Context) error {
	if p.drain != nil {
		<-p.drain
	}
	return nil
}

func (p *pipe) Close() error {
	p.once.Do(func() {
		p.opener.mu.Lock()
		defer p.opener.mu.Unlock()
		p.opener.open--
	})
	return nil
}

// holder counts what is held.
type holder struct {
	mu   sync.Mutex
	held map[string]bool
}

func (h *holder) Hold(key string, _ *os.File) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held[key] = true
	return nil
}

func (h *holder) Drop(key string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.held, key)
}

func (h *holder) holds(key string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.held[key]
}

func (h *holder) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.held)
}

type watcher struct{}

func (watcher) Add(string, map[string]string) error { return nil }
func (watcher) Remove(string)                       {}

// rig is a Server with fakes all around.
type rig struct {
	*testing.T
	*Server
	runtime *fake
	stdio   *pipes
	holder  *holder
	ctx     context.Context
}

func newRig(t *testing.T) *rig { return newRigAt(t, t.TempDir(), newFake()) }

func newRigAt(t *testing.T, dir string, f *fake) *rig {
	t.Helper()
	reaper, err := pidfd.NewReaper()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	md := ttrpc.MD{}
	md.Set(namespaceHeader, "ns")
	r := &rig{T: t, runtime: f, stdio: &pipes{drains: map[string]chan struct{}{}}, holder: &holder{held: map[string]bool{}}, ctx: ttrpc.WithMetadata(ctx, md)}
	r.Server = New(Config{
		Dir: filepath.Join(dir, "containers"), Version: "test",
		Runtimes: map[string]Runtime{"": f, "full": &full{fake: f}},
		Stdio:    r.stdio, Reaper: reaper, Holder: r.holder, OOM: watcher{},
	})
	t.Cleanup(func() {
		cancel()
		reaper.Close()
		for id := range f.procs {
			_ = f.Delete(context.Background(), Ref{ID: id})
		}
	})
	return r
}

func (r *rig) restore(held map[string]*os.File) *rig {
	r.Helper()
	if err := r.Server.Restore(context.Background(), held); err != nil {
		r.Fatal(err)
	}
	return r
}

// bundle of a container; without a pid namespace of its own if shared.
func (r *rig) bundle(shared bool) string {
	r.Helper()
	dir := r.TempDir()
	namespaces := `[{"type":"pid"}]`
	if shared {
		namespaces = `[]`
	}
	spec := `{"process":{"args":["x"],"cwd":"/"},"root":{"path":"rootfs"},"linux":{"namespaces":` + namespaces + `}}`
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(spec), 0o600); err != nil {
		r.Fatal(err)
	}
	return dir
}

func (r *rig) create(id, options string) {
	r.Helper()
	req := &wire.CreateTaskRequest{Id: id, Bundle: r.bundle(false), Stdout: id}
	if options != "" {
		req.Options = &anypb.Any{TypeUrl: options}
	}
	if _, err := r.Create(r.ctx, req); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) start(id, exec string) {
	r.Helper()
	if _, err := r.Start(r.ctx, &wire.StartRequest{Id: id, ExecId: exec}); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) exec(id, exec string) {
	r.Helper()
	if _, err := r.Exec(r.ctx, &wire.ExecProcessRequest{Id: id, ExecId: exec, Stdout: exec, Spec: &anypb.Any{Value: []byte("{}")}}); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) wait(id, exec string) uint32 {
	r.Helper()
	w, err := r.Wait(r.ctx, &wire.WaitRequest{Id: id, ExecId: exec})
	if err != nil {
		r.Fatal(err)
	}
	return w.ExitStatus
}

// next returns the next event.
func (r *rig) next(events <-chan *api.Event) *api.Event {
	r.Helper()
	select {
	case e := <-events:
		return e
	case <-r.ctx.Done():
		r.Fatal("no event comes")
		return nil
	}
}

var errFake = errors.New("fake failure")

var _ io.Closer = (*pipe)(nil)
