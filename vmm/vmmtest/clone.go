package vmmtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/vmm"
)

// templated makes the template of the bench's pod, which boots for that.
func (b *bench) templated() {
	b.Helper()
	if b.cloner == nil {
		b.Skip("the driver has no Templater")
	}
	b.store = filepath.Join(filepath.Dir(filepath.Dir(b.spec.Dir)), "templates")
	// Files of the test's own, to change.
	modules := filepath.Join(filepath.Dir(b.s.Options.Initrd), "modules")
	if _, err := os.Stat(modules); err == nil {
		b.must(os.CopyFS(b.store+"-inputs/modules", os.DirFS(modules)))
	}
	for _, path := range []*string{&b.s.Options.Kernel, &b.s.Options.Initrd} {
		content, err := os.ReadFile(*path)
		b.must(err)
		*path = filepath.Join(b.store+"-inputs", filepath.Base(*path))
		b.must(os.MkdirAll(filepath.Dir(*path), 0o700))
		b.must(os.WriteFile(*path, content, 0o600))
	}
	b.daemon()
	b.start()
	b.cloned(0)
	b.remove()
	b.must(b.backend.Templates.Settled(b.ctx))
	b.templates(1)
}

// remove removes the pod, and waits until nobody has anything of it.
func (b *bench) remove() {
	b.Helper()
	b.must(b.box.Stop(b.ctx))
	b.must(b.box.Delete(b.ctx))
	b.nobody()
}

// templates says how many there shall be, and nothing beside them.
func (b *bench) templates(want int) {
	b.Helper()
	entries, err := os.ReadDir(b.store)
	b.must(err)
	if got := b.backend.Templates.Keys(); len(got) != want || len(entries) != want {
		b.Errorf("templates %q, there are %v: want %d", got, entries, want)
	}
}

func (b *bench) cloned(want int) {
	b.Helper()
	if got := b.cloner.clones; got != want {
		b.Errorf("%d clones, want %d", got, want)
	}
}

func isCloned(_ *testing.T, b *bench) {
	b.templated()
	for n := range 2 {
		b.start()
		b.cloned(n + 1)
		b.answers()
		b.remove()
	}
	b.start()
	b.restore()
	b.answers()
	b.must(unix.Kill(b.processes()["vmm"].Pid, unix.SIGKILL))
	if e := b.ends(); e.Status != 128+9 {
		b.Errorf("exit %+v", e)
	}
}

// isClonedAgain by the next daemon.
func isClonedAgain(_ *testing.T, b *bench) {
	b.templated()
	b.daemon()
	b.templates(1)
	b.start()
	b.cloned(1)
	b.answers()
}

func clonesPlugDisks(t *testing.T, b *bench) {
	b.templated()
	plugsDisks(t, b)
}

// boots says that the pod runs, and nobody but it: it was not to be cloned.
func (b *bench) boots(tried []vmm.Process) {
	b.Helper()
	b.answers()
	for _, p := range tried {
		f, err := pidfd.Open(p.Pid, p.Start)
		if errdefs.IsNotFound(err) {
			continue
		}
		b.must(err)
		if running, err := pidfd.Running(f); running || err != nil {
			b.Errorf("process %d of the clone is left: %v", p.Pid, err)
		}
		f.Close()
	}
	b.templates(0)
	b.must(unix.Kill(b.processes()["vmm"].Pid, unix.SIGKILL))
	if e := b.ends(); e.Status != 128+9 {
		b.Errorf("exit %+v", e)
	}
	b.remove()
	// It is not tried again soon.
	b.start()
	b.cloned(1)
	b.must(b.backend.Templates.Settled(b.ctx))
	b.templates(0)
}

func cloneFails(_ *testing.T, b *bench) {
	b.templated()
	var tried []vmm.Process
	b.cloner.meddle = func(c vmm.Config, _ error) error {
		tried = append(tried, c.Process())
		return errors.New("it cannot be cloned")
	}
	b.start()
	b.cloned(1)
	b.boots(tried)
}

// cloneDies instead of saying hello.
func cloneDies(_ *testing.T, b *bench) {
	b.templated()
	var tried []vmm.Process
	b.cloner.meddle = func(c vmm.Config, err error) error {
		tried = append(tried, c.Process())
		return errors.Join(err, unix.Kill(c.Process().Pid, unix.SIGKILL))
	}
	b.start()
	b.cloned(1)
	b.boots(tried)
}

// cloneCanceled leaves nothing, and the template as it was.
func cloneCanceled(_ *testing.T, b *bench) {
	b.templated()
	ctx, cancel := context.WithCancelCause(b.ctx)
	gaveUp := errors.New("gave up")
	b.cloner.meddle = func(_ vmm.Config, err error) error {
		cancel(gaveUp)
		return err
	}
	if err := b.fails(ctx); !errors.Is(err, gaveUp) && !errors.Is(err, context.Canceled) {
		b.Errorf("error: %v", err)
	}
	b.must(b.box.Delete(b.ctx))
	b.templates(1)
	b.cloner.meddle = nil
	b.start()
	b.cloned(2)
}

// cloneOfBadPod fails as the pod would that boots: the template is good for
// others.
func cloneOfBadPod(_ *testing.T, b *bench) {
	b.templated()
	linux := b.spec.Config.Linux
	linux.Sysctls = map[string]string{noSysctl: "1"}
	if err := b.fails(b.ctx); err == nil || !strings.Contains(err.Error(), noSysctl) {
		b.Errorf("error: %v", err)
	}
	b.must(b.box.Delete(b.ctx))
	b.templates(1)
	linux.Sysctls = nil
	b.start()
	b.cloned(2)
}

// noSysctl is one that no guest's kernel has.
const noSysctl = "kernel.kuasar_none"

// templateDamaged behind the daemon's back, with nothing changed but its
// content.
func templateDamaged(_ *testing.T, b *bench) {
	b.templated()
	dir := filepath.Join(b.store, b.backend.Templates.Keys()[0])
	entries, err := os.ReadDir(dir)
	b.must(err)
	for _, e := range entries {
		if e.Name() == "template.json" {
			continue
		}
		f, err := os.OpenFile(filepath.Join(dir, e.Name()), os.O_RDWR, 0)
		b.must(err)
		_, err = f.WriteAt([]byte("?"), 0)
		b.must(errors.Join(err, f.Close()))
		break
	}
	b.start()
	b.cloned(0)
	b.answers()
	b.templates(0)
}

// templateOutdated by another kernel: the next one takes its place.
func templateOutdated(_ *testing.T, b *bench) {
	b.templated()
	before := b.backend.Templates.Keys()[0]
	touch := func(more string) {
		f, err := os.OpenFile(b.s.Options.Initrd, os.O_WRONLY|os.O_APPEND, 0)
		b.must(err)
		_, err = f.WriteString(more)
		b.must(errors.Join(err, f.Close(), os.Chtimes(f.Name(), time.Time{}, time.Now())))
	}
	touch("\x00\x00\x00\x00one more") // which no kernel looks at
	b.start()
	b.cloned(0)
	b.remove()
	b.must(b.backend.Templates.Settled(b.ctx))
	b.templates(1)
	if after := b.backend.Templates.Keys()[0]; after == before {
		b.Error("the template is the same")
	}
	b.start()
	b.cloned(1)
	b.remove()
	// The same content is the same template, once that is known.
	touch("")
	b.start()
	b.remove()
	b.must(b.backend.Templates.Settled(b.ctx))
	b.start()
	b.cloned(2)
}
