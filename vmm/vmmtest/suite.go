package vmmtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/vmm"
)

// Suite is what a driver's conformance is tested with.
type Suite struct {
	Driver  vmm.Driver
	Options vmm.Options // of all machines; Hypervisor is set

	// Unbootable changes the options to those of a machine that does not start.
	Unbootable func(t *testing.T, o *vmm.Options)
}

// deadline bounds one case: an emulated machine takes seconds to boot.
const deadline = 2 * time.Minute

// Run runs all cases. It needs root.
func Run(t *testing.T, s Suite) {
	for name, run := range map[string]func(*testing.T, *bench){
		"Runs":           runs,
		"RestoredAgain":  restored,
		"RestoredDead":   restoredDead,
		"ProcessesDie":   processesDie,
		"DoesNotBoot":    doesNotBoot,
		"SaysNothing":    saysNothing,
		"SaysOther":      saysOther,
		"CanceledInBoot": canceledInBoot,
		"PlugsDisks":     plugsDisks,
		"Resizes":        resizes,
		"ResizesClone":   resizesClone,

		"IsCloned":         isCloned,
		"IsClonedAgain":    isClonedAgain,
		"ClonesPlugDisks":  clonesPlugDisks,
		"CloneFails":       cloneFails,
		"CloneDies":        cloneDies,
		"CloneCanceled":    cloneCanceled,
		"CloneOfBadPod":    cloneOfBadPod,
		"TemplateDamaged":  templateDamaged,
		"TemplateOutdated": templateOutdated,
	} {
		t.Run(name, func(t *testing.T) { run(t, newBench(t, s)) })
	}
}

// bench has one pod.
type bench struct {
	*testing.T
	s       Suite
	ctx     context.Context
	spec    sandbox.Spec
	backend *vmm.Backend
	box     sandbox.Sandbox
	spy     *spy
	cloner  *cloner // nil without templates
	store   string  // directory of templates; empty for none

	mu    sync.Mutex
	saved json.RawMessage
}

func newBench(t *testing.T, s Suite) *bench {
	dir, err := os.MkdirTemp("", "vm") // short, for sockets
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	b := &bench{T: t, s: s, ctx: ctx}
	b.spec = sandbox.Spec{
		ID: "pod", Namespace: "test", Dir: filepath.Join(dir, "boxes", "pod"), CreatedAt: time.Now(),
		Config: &runtime.PodSandboxConfig{Hostname: "guest", Linux: &runtime.LinuxPodSandboxConfig{CgroupParent: Group}},
		Saved:  func(context.Context) error { return b.save() },
	}
	if err := os.MkdirAll(b.spec.Dir, 0o711); err != nil {
		t.Fatal(err)
	}
	b.daemon()
	t.Cleanup(func() {
		defer cancel()
		if b.box != nil {
			b.must(b.box.Stop(b.ctx))
			b.must(b.box.Delete(b.ctx))
		}
		b.nobody()
		b.close()
		b.must(os.RemoveAll(dir))
		Leaks(t)
	})
	return b
}

func (b *bench) save() (err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.saved, err = b.box.Save()
	return err
}

// daemon is the next daemon. The former one is only forgotten: of a process that
// was killed there is no more left either.
func (b *bench) daemon() {
	b.Helper()
	r, err := pidfd.NewReaper()
	b.must(err)
	if b.backend != nil {
		b.close()
	}
	o := b.s.Options
	o.Hypervisor = "test"
	b.spy = &spy{Driver: b.s.Driver}
	var driver vmm.Driver = b.spy
	if _, ok := b.s.Driver.(vmm.Templater); ok {
		b.cloner = &cloner{spy: b.spy}
		driver = b.cloner
	}
	b.backend = &vmm.Backend{Drivers: map[string]vmm.Driver{"test": driver}, Defaults: o, Reaper: r}
	if b.store != "" {
		b.backend.Defaults.Templates = true
		b.backend.Templates, err = vmm.OpenTemplates(b.ctx, b.store, r)
		b.must(err)
	}
}

func (b *bench) close() {
	b.Helper()
	if b.backend.Templates != nil {
		b.must(b.backend.Templates.Close())
	}
	b.must(b.backend.Reaper.Close())
}

func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *bench) create() {
	b.Helper()
	box, err := b.backend.Create(b.ctx, b.spec)
	b.must(err)
	b.box = box
}

func (b *bench) restore() {
	b.Helper()
	b.daemon()
	box, err := b.backend.Restore(b.ctx, b.spec, b.saved)
	b.must(err)
	b.box = box
}

// start runs the pod, and saves it as the Controller does.
func (b *bench) start() {
	b.Helper()
	b.create()
	b.must(b.box.Start(b.ctx))
	b.must(b.spec.Saved(b.ctx))
}

// answers asks the agent something.
func (b *bench) answers() {
	b.Helper()
	agent, err := b.box.Agent(b.ctx)
	b.must(err)
	info, err := agent.Info(b.ctx, &api.InfoRequest{})
	b.Log(info)
	if err != nil || info.Protocol != api.Protocol {
		b.Errorf("agent: %v, %v", info, err)
	}
}

// processes are those that were recorded.
func (b *bench) processes() map[string]vmm.Process {
	b.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	var s struct{ Processes map[string]vmm.Process }
	if b.saved != nil {
		b.must(json.Unmarshal(b.saved, &s))
	}
	return s.Processes
}

// nobody fails the test if a process is left.
func (b *bench) nobody() {
	b.Helper()
	for role, p := range b.processes() {
		f, err := pidfd.Open(p.Pid, p.Start)
		if errdefs.IsNotFound(err) {
			continue
		}
		b.must(err)
		if running, err := pidfd.Running(f); running || err != nil {
			b.Errorf("%s (process %d) is left: %v", role, p.Pid, err)
		}
		f.Close()
	}
}

// ends waits for the end of the pod.
func (b *bench) ends() sandbox.Exit {
	b.Helper()
	e, err := b.box.Wait(b.ctx)
	b.must(err)
	return e
}

func runs(t *testing.T, b *bench) {
	b.create()
	if pid := b.box.(sandbox.Processer).Pid(); pid != 0 { // others would take it for the machine's
		t.Errorf("before it runs, pid %d", pid)
	}
	b.must(b.box.Start(b.ctx))
	b.must(b.spec.Saved(b.ctx))
	b.answers()
	pid := b.box.(sandbox.Processer).Pid()
	if got := b.processes()["vmm"].Pid; uint32(got) != pid {
		t.Errorf("pid %d, recorded %d", pid, got)
	}
	for role, p := range b.processes() {
		groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.Pid))
		if err != nil || strings.Count(string(groups), Group+"/pod\n") != strings.Count(string(groups), "\n") {
			t.Errorf("cgroups of %s: %s, %v", role, groups, err)
		}
	}
	b.must(b.box.Stop(b.ctx))
	b.must(b.box.Stop(b.ctx))
	if e := b.ends(); e.Status != 0 || e.At.IsZero() {
		t.Errorf("exit %+v", e)
	}
	if _, err := b.box.Agent(b.ctx); !errdefs.IsUnavailable(err) {
		t.Errorf("agent of a stopped pod: %v", err)
	}
}

func restored(_ *testing.T, b *bench) {
	b.start()
	for range 2 {
		b.restore()
		b.answers()
	}
}

func restoredDead(t *testing.T, b *bench) {
	b.start()
	p := b.processes()["vmm"]
	b.must(unix.Kill(p.Pid, unix.SIGKILL))
	b.ends()
	b.restore()
	if e := b.ends(); e.At.IsZero() {
		t.Errorf("exit %+v", e)
	}
}

// processesDie one after the other, and each is the end of all.
func processesDie(t *testing.T, b *bench) {
	roles := []string{"vmm"}
	for i := 0; i < len(roles); i++ {
		b.start()
		if i == 0 {
			for role := range b.processes() {
				if role != "vmm" {
					roles = append(roles, role)
				}
			}
		}
		b.must(unix.Kill(b.processes()[roles[i]].Pid, unix.SIGKILL))
		if e := b.ends(); e.Status != 128+9 {
			t.Errorf("without %s: exit %+v", roles[i], e)
		}
		b.must(b.box.Stop(b.ctx))
		b.nobody()
		b.must(b.box.Delete(b.ctx))
	}
}

// fails starts the pod, which must not succeed, nor leave anything.
func (b *bench) fails(ctx context.Context) error {
	b.Helper()
	b.create()
	err := b.box.Start(ctx)
	if err == nil {
		b.Fatal("it starts")
	}
	b.nobody()
	return err
}

func doesNotBoot(t *testing.T, b *bench) {
	if b.s.Unbootable == nil {
		t.Skip("needs Suite.Unbootable")
	}
	b.s.Unbootable(t, &b.backend.Defaults)
	began := time.Now()
	err := b.fails(b.ctx)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "says") {
		t.Errorf("error: %v", err)
	}
	if took := time.Since(began); took > b.s.Options.BootTimeout {
		t.Errorf("it took %v to notice", took)
	}
}

func saysNothing(t *testing.T, b *bench) {
	b.backend.Defaults.BootTimeout = 100 * time.Millisecond // less than any machine needs
	if mute, ok := b.s.Driver.(Fake); ok {
		mute.Mute = true
		b.spy.Driver = mute
	}
	err := b.fails(b.ctx)
	if !strings.Contains(err.Error(), "boot_timeout") {
		t.Errorf("error: %v", err)
	}
}

// saysOther is of agents that are none, or of another release.
func saysOther(t *testing.T, b *bench) {
	fake, ok := b.s.Driver.(Fake)
	if !ok {
		t.Skip("needs a Fake, which says what it is told")
	}
	for says, driver := range map[string]vmm.Driver{
		"is the guest's init kuasar-task":            with(fake, func(f *Fake) { f.Garbled = true }),
		"make the guest's initramfs of this release": with(fake, func(f *Fake) { f.Other = true }),
	} {
		b.spy.Driver = driver
		if err := b.fails(b.ctx); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), says) {
			t.Errorf("%q is not in: %v", says, err)
		}
	}
}

func with(f Fake, change func(*Fake)) Fake {
	change(&f)
	return f
}

func canceledInBoot(t *testing.T, b *bench) {
	ctx, cancel := context.WithCancelCause(b.ctx)
	gaveUp := errors.New("gave up")
	b.spec.Saved = func(context.Context) error {
		err := b.save()
		if _, begun := b.processes()["vmm"]; begun {
			cancel(gaveUp)
		}
		return err
	}
	if err := b.fails(ctx); !errors.Is(err, gaveUp) && !errors.Is(err, context.Canceled) {
		t.Errorf("error: %v", err)
	}
}
