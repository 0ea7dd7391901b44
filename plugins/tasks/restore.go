package tasks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sync/errgroup"

	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
	"github.com/containerd-kuasar/containerd-kuasar/plugins/crilog"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/task"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/task/stream"
)

const (
	// restoreTimeout bounds what New waits for. The rest goes on in the
	// background: containerd must come up without an agent, too. It is as long
	// as the CRI plugin waits for one container (loadContainerTimeout).
	restoreTimeout = 10 * time.Second

	// meetTimeout is how much of that may go by until agents answer.
	meetTimeout = 7 * time.Second

	// restoreLimit is how many tasks are restored at once.
	restoreLimit = 16
)

// restore brings back all recorded tasks before the CRI plugin asks for them.
func (r *Runtime) restore(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, restoreTimeout)
	defer cancel()
	fail := func(k key, err error) {
		log.G(ctx).WithError(err).WithField("id", k.id).Error("task is not restored")
		r.quarantine(k, err)
		go r.await(k)
	}
	var tasks []*Task
	var gone []key
	for _, k := range r.recorded() {
		t, err := r.load(k, r.find)
		switch {
		case err != nil:
			fail(k, err)
		case t == nil:
			gone = append(gone, k)
		default:
			r.add(t)
			tasks = append(tasks, t)
		}
	}
	r.revive(ctx, tasks)
	for _, k := range gone { // agents can be asked now
		if err := r.disown(ctx, k); err != nil {
			fail(k, err)
		}
	}
}

// revive brings loaded tasks up to date. Nobody reads their output yet.
//
// A task whose agent is late is known as it was, and what its agent says of it
// comes later. Only its log is not completed then: it is the CRI plugin's by
// that time. To withhold the task from that instead would be worse, for the
// kubelet ends containers in an unknown state.
func (r *Runtime) revive(ctx context.Context, tasks []*Task) {
	look := r.veil(tasks)
	for _, t := range tasks {
		if t.phase() == living && !t.isDone() {
			t.holdStdin()
		}
	}
	late := r.meet(ctx, tasks)
	ready := slices.DeleteFunc(slices.Clone(tasks), func(t *Task) bool { return late[t.pod] != nil })
	for _, t := range tasks {
		if late[t.pod] != nil || !t.streams() {
			look(t)
		}
	}
	var mu sync.Mutex // guards late
	var g errgroup.Group
	g.SetLimit(restoreLimit)
	for _, t := range ready {
		g.Go(func() error {
			err := t.restore(ctx)
			if t.streams() { // this daemon has its output open, too
				look(t)
			}
			if err != nil {
				log.G(ctx).WithError(err).WithField("id", t.key.id).Warn("task is not restored yet")
				mu.Lock()
				defer mu.Unlock()
				late[t.pod] = t.sandbox
			}
			return nil
		})
	}
	_ = g.Wait()
	for id, live := range late {
		log.G(ctx).WithField("sandbox", id).Warn("agent is late: output that a former daemon had in hand may be missing in logs")
		go r.reach(id, live)
	}
}

// veil covers those of the tasks whose output the CRI plugin reads. look begins
// to look for that, once, when this daemon has opened of one what it does.
func (r *Runtime) veil(tasks []*Task) (look func(*Task)) {
	tasks = slices.DeleteFunc(slices.Clone(tasks), func(t *Task) bool {
		return !t.saved.Retain || t.phase() != living || t.isDone()
	})
	if len(tasks) == 0 {
		return func(*Task) {}
	}
	v, err := newVeils()
	if err != nil {
		log.G(r.life).WithError(err).Warn("output of containers that exit just now may be lost")
		return func(*Task) {}
	}
	for _, t := range tasks {
		if err := v.cover(t); err != nil {
			log.G(r.life).WithError(err).Warn("output is lost if the container exits just now")
		}
	}
	go func() {
		wait := time.NewTimer(veilTime)
		defer wait.Stop()
		select {
		case <-wait.C:
		case <-r.life.Done():
		}
		_ = v.close()
		for _, t := range tasks {
			t.uncover()
		}
	}()
	return func(t *Task) {
		if err := v.look(t); err != nil {
			log.G(r.life).WithError(err).Warn("output is lost if the container exits just now")
		}
	}
}

func (r *Runtime) recorded() []key {
	var keys []key
	_ = filepath.WalkDir(r.cfg.Dir, func(path string, d fs.DirEntry, err error) error {
		name := filepath.Base(path)
		if err == nil && !d.IsDir() && strings.HasSuffix(name, ".json") && !strings.HasPrefix(name, ".") {
			keys = append(keys, key{filepath.Base(filepath.Dir(path)), strings.TrimSuffix(name, ".json")})
		}
		return nil
	})
	return keys
}

// load makes a task of its record, or nil if its sandbox is gone.
func (r *Runtime) load(k key, find func(sandbox string) (*sandbox.Live, error)) (*Task, error) {
	var s saved
	current, err := record.Read(r.recordPath(k), &s)
	if err != nil {
		return nil, err
	}
	live, err := find(s.Sandbox)
	switch {
	case err != nil:
		return nil, err // quarantined: its tasks are left alone with it
	case live != nil:
	case current && !r.serves(s.Sandboxer):
		return nil, fmt.Errorf("sandbox %s is of sandboxer %q, which does not run: the daemon's log has its reason: %w",
			s.Sandbox, s.Sandboxer, errdefs.ErrUnavailable)
	default:
		return nil, nil
	}
	t := r.newTask(k, live, s)
	switch {
	case s.Phase == creating: // see withdraw
	case s.Exit != nil:
		t.process.status, t.process.exit = runtime.StoppedStatus, *s.Exit
		close(t.done)
	case s.Phase == deleting: // it never ran
		t.bury()
	default:
		// Until its agent says what it is: clients remove what is only created.
		t.process.status = runtime.RunningStatus
	}
	return t, nil
}

// disown lets go of a task whose sandbox is gone, and everything of it. An
// agent that other sandboxes share may have the container still, and refuses to
// remove one that runs. While the daemon ends, or no agent is reached, nobody can
// be asked.
func (r *Runtime) disown(ctx context.Context, k key) error {
	ctx = namespaces.WithNamespace(ctx, k.namespace)
	agents := r.shared()
	lives := slices.ContainsFunc(r.all(), func(t *Task) bool { return t.phase() == living && !t.isDone() && !t.streams() })
	if err := r.life.Err(); err != nil || len(agents) == 0 && lives {
		return fmt.Errorf("its sandbox is gone, and no agent is there to ask for its container: %w", errors.Join(err, errdefs.ErrUnavailable))
	}
	for _, agent := range agents {
		_, err := agent.Delete(ctx, &taskapi.DeleteRequest{ID: k.id})
		if err = native(err); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("its sandbox is gone and its container is not: %w", err)
		}
	}
	if err := r.deactivate(ctx, k.id); err != nil {
		return err
	}
	return r.newTask(k, nil, saved{}).erase()
}

// restore brings a loaded task up to date, or finishes what was begun.
func (t *Task) restore(ctx context.Context) error {
	ctx = namespaces.WithNamespace(ctx, t.key.namespace)
	if t.over() {
		t.finish(t.killed())
	}
	if t.phase() != living {
		return t.resume(ctx)
	}
	if t.over() {
		return nil
	}
	if _, err := t.agent(ctx); err != nil {
		return err
	}
	defer t.restream(ctx)
	if !t.saved.Retain {
		return nil
	}
	log := log.G(ctx).WithField("id", t.key.id)
	n, ended, err := t.completeLog(ctx)
	if err != nil {
		log.WithError(err).Warn("output that a former daemon had in hand is not in the log")
	} else if n > 0 {
		log.WithField("bytes", n).Info("completed the log of a task")
	}
	if ended { // what is in its FIFOs is in the log, too
		t.uncover()
	}
	return nil
}

// resume goes on with a creation that failed or a deletion that was begun.
func (t *Task) resume(ctx context.Context) error {
	if t.phase() == living {
		return nil
	}
	ctx = namespaces.WithNamespace(ctx, t.key.namespace)
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	end, err := t.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	switch t.phase() {
	case creating:
		err = t.withdraw(ctx)
	case deleting:
		_, err = t.dispose(ctx)
	}
	return err
}

// completeLog appends to the container's log what a killed daemon had in hand,
// and returns how many bytes that were. ended says that no more will come.
func (t *Task) completeLog(ctx context.Context) (n int, ended bool, err error) {
	path, err := t.logPath(ctx)
	if err != nil || path == "" {
		return 0, t.gone(), err
	}
	var kept *api.RetainedResponse
	err = t.call(ctx, func(ctx context.Context, agent *task.Client) (err error) {
		kept, err = agent.Retained(ctx, &api.RetainedRequest{ContainerId: t.key.id})
		return err
	})
	if err != nil {
		return 0, t.gone(), err
	}
	var streams []crilog.Retained
	for name, o := range map[string]*api.Output{"stdout": kept.Stdout, "stderr": kept.Stderr} {
		if o != nil {
			streams = append(streams, crilog.Retained{Stream: name, Data: o.Data, Complete: o.Complete})
		}
	}
	if n, err = crilog.Complete(path, streams...); err == nil {
		t.process.mu.Lock()
		t.process.logged = stream.Places{Stdout: kept.Stdout.GetEnd(), Stderr: kept.Stderr.GetEnd()}
		t.process.mu.Unlock()
	}
	return n, kept.Ended, err
}

// criMetadata is the extension in which the CRI plugin keeps its record of a
// container (internal/cri/labels.ContainerMetadataExtension).
const criMetadata = "io.cri-containerd.container.metadata"

func (t *Task) logPath(ctx context.Context) (string, error) {
	c, err := t.runtime.cfg.Containers.Get(ctx, t.key.id)
	if err != nil {
		return "", fmt.Errorf("look up container %s: %w", t.key.id, err)
	}
	ext := c.Extensions[criMetadata]
	if ext == nil {
		return "", nil
	}
	var m struct{ Metadata struct{ LogPath string } }
	if err := json.Unmarshal(ext.GetValue(), &m); err != nil {
		return "", fmt.Errorf("decode CRI's record of container %s: %w", t.key.id, err)
	}
	return m.Metadata.LogPath, nil
}
