package vmm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
)

var (
	fpMoldMade   = failpoint.New("vmm/template/made")
	fpMoldNoted  = failpoint.New("vmm/template/noted")
	fpMoldBooted = failpoint.New("vmm/template/booted")
	fpMoldSaved  = failpoint.New("vmm/template/saved")
	fpMoldReady  = failpoint.New("vmm/template/ready")
)

const (
	// moldTimes boot_timeout is what a template has to boot and be saved: nobody
	// waits for it, and it makes way for those that somebody waits for.
	moldTimes = 3

	// moldNice is the priority of its processes; see setpriority(2).
	moldNice = 10

	// moldFile records the machine, so that the next daemon can end it.
	moldFile = "process.json"
)

// begin makes a template in the background, one at a time. Who calls it holds
// t.mu.
func (t *Templates) begin(s shape, within time.Duration) {
	if t.build || t.ctx.Err() != nil || time.Now().Before(t.rest[s.id]) {
		return
	}
	t.build = true
	t.work.Add(1)
	go func() {
		defer t.work.Done()
		began := time.Now()
		made, err := t.make(s, moldTimes*within)
		entry := log.L.WithFields(log.Fields{"memory": s.config.Memory, "vcpus": s.config.CPUs, "took": time.Since(began)})
		switch {
		case err == nil && made != nil:
			entry.WithFields(log.Fields{"template": made.key, "bytes": made.bytes}).Info("template made: pods like this are cloned from now on")
		case err != nil && t.ctx.Err() == nil:
			entry.WithError(err).Warnf("pods boot, which is slower: no template can be made of their machine; this is tried again after %v", restTime)
		}
		defer t.pool.refill()
		t.mu.Lock()
		defer t.mu.Unlock()
		t.build = false
		if err != nil {
			t.rest[s.id] = time.Now().Add(restTime)
		}
		for c := range t.done {
			close(c)
			delete(t.done, c)
		}
	}()
}

// make boots a machine, saves it and keeps that. It is nil if there is one
// already: only its files had to be read again.
func (t *Templates) make(s shape, within time.Duration) (*saved, error) {
	ctx, cancel := context.WithTimeoutCause(t.ctx, within, fmt.Errorf("it takes more than %v", within))
	defer cancel()
	inputs, err := t.read(ctx, s.files)
	if err != nil {
		return nil, err
	}
	key, ok := t.key(s)
	if !ok {
		return nil, fmt.Errorf("a file that the machine is made of changes all the time: %w", errdefs.ErrUnavailable)
	}
	t.mu.Lock()
	known := t.known[key] != nil
	t.mu.Unlock()
	if known {
		return nil, nil
	}
	dir := filepath.Join(t.dir, "new-"+key)
	files := filepath.Join(dir, "saved")
	// One that could not be removed is in the way no longer than that.
	if err := removeMold(ctx, t.reaper, dir); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	err = os.Mkdir(files, 0o700)
	if err == nil {
		err = t.mold(ctx, s, dir, files)
	}
	made := &saved{key: key, dir: filepath.Join(t.dir, key), turn: make(chan struct{}, 1), used: time.Now()}
	if err == nil {
		made.note = note{Key: key, Shape: s.id, Inputs: inputs, Files: map[string]string{}}
		err = made.seal(ctx, files)
	}
	if err == nil {
		fpMoldReady.Hit()
		err = os.Rename(files, made.dir)
	}
	if err = errors.Join(err, removeMold(context.WithoutCancel(ctx), t.reaper, dir)); err != nil {
		return nil, err
	}
	return made, t.keep(made)
}

// read makes files known.
func (t *Templates) read(ctx context.Context, files []string) ([]input, error) {
	var all []input
	for _, path := range files {
		sum, id, err := sum(ctx, path)
		if err != nil {
			return nil, err
		}
		all = append(all, input{id, sum})
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.sums) > maxSums { // of files that are long gone
		clear(t.sums)
	}
	for _, i := range all {
		t.sums[i.Identity] = i.Digest
	}
	return all, nil
}

// maxSums is far more than the inputs of all templates.
const maxSums = 256

// mold boots a machine in dir and saves it to files.
func (t *Templates) mold(ctx context.Context, s shape, dir, files string) (err error) {
	fpMoldMade.Hit()
	console, err := newConsole()
	if err != nil {
		return err
	}
	defer console.close()
	m := &molder{reaper: t.reaper, dir: dir}
	defer func() { err = errors.Join(err, m.end()) }()
	c := s.config
	c.ID, c.Dir, c.Console, c.Launch = "template", dir, console.out, m.launch
	c.Process = func() Process { return m.proc.Process }
	vm, err := s.driver.StartTemplate(ctx, c)
	if err != nil {
		return err
	}
	if err := m.await(ctx, console.ready); err != nil {
		// Not saved, but the driver lets go of what it has for that.
		return fmt.Errorf("%w%s%s", err, m.tail(), console.tail())
	}
	fpMoldBooted.Hit()
	if err := vm.Save(ctx, files); err != nil {
		return fmt.Errorf("%w%s", err, m.tail())
	}
	fpMoldSaved.Hit()
	return nil
}

// molder has the one process of a template's machine.
type molder struct {
	reaper *pidfd.Reaper
	dir    string
	proc   *proc
}

func (m *molder) log() string { return filepath.Join(m.dir, roleVMM+".log") }

func (m *molder) launch(_ context.Context, c Command) error {
	out, err := os.OpenFile(m.log(), os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	c.Dir = m.dir
	return launch(c, "", out, func(p Process) (err error) {
		if err := record.Write(filepath.Join(m.dir, moldFile), p); err != nil {
			return err
		}
		fpMoldNoted.Hit()
		if err := unix.Setpriority(unix.PRIO_PROCESS, p.Pid, moldNice); err != nil {
			return fmt.Errorf("set the priority of process %d: %w", p.Pid, err)
		}
		m.proc, err = follow(m.reaper, p, nil)
		return err
	})
}

// await waits until the agent says that it can be saved.
func (m *molder) await(ctx context.Context, ready <-chan struct{}) error {
	select {
	case <-ready:
		return nil
	case <-m.proc.done:
		return fmt.Errorf("the machine ended with status %d before its agent was ready: %w", m.proc.exit.Status, errdefs.ErrFailedPrecondition)
	case <-ctx.Done():
		return fmt.Errorf("wait for the guest's agent: %w", context.Cause(ctx))
	}
}

// end returns when the machine is gone.
func (m *molder) end() error {
	if m.proc == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), undoTime)
	defer cancel()
	return m.proc.kill(ctx)
}

func (m *molder) tail() string { return tail(m.log()) }

// removeMold removes a directory in which a template was made, or the file that
// is in its place: first the machine, which nobody knows of without the record.
func removeMold(ctx context.Context, r *pidfd.Reaper, dir string) error {
	if err := endMachine(ctx, r, dir); err != nil && !errors.Is(err, unix.ENOTDIR) {
		return err
	}
	return os.RemoveAll(dir)
}

// endMachine ends that of an earlier daemon in dir.
func endMachine(ctx context.Context, r *pidfd.Reaper, dir string) error {
	var p Process
	same, err := record.Read(filepath.Join(dir, moldFile), &p)
	if errdefs.IsNotFound(err) || err == nil && !same {
		return nil
	}
	if err != nil {
		return err
	}
	q, err := follow(r, p, nil)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, undoTime)
	defer cancel()
	return q.kill(ctx)
}

// seal records the template with the digests of its files.
func (s *saved) seal(ctx context.Context, files string) error {
	entries, err := os.ReadDir(files)
	if err != nil {
		return err
	}
	s.checked = map[string]identity{}
	for _, e := range entries {
		if s.note.Files[e.Name()], s.checked[e.Name()], err = sum(ctx, filepath.Join(files, e.Name())); err != nil {
			return err
		}
	}
	if s.bytes, err = allocated(files); err != nil {
		return err
	}
	return record.Write(filepath.Join(files, noteFile), s.note)
}
