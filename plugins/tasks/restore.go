package tasks

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"golang.org/x/sync/errgroup"

	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
	"github.com/containerd-kuasar/containerd-kuasar/plugins/crilog"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

const (
	// restoreTimeout bounds what New waits for. The rest goes on in the
	// background: containerd must come up without an agent, too.
	restoreTimeout = 30 * time.Second

	// restoreLimit is how many tasks are restored at once.
	restoreLimit = 16
)

// restore brings back all recorded tasks before the CRI plugin asks for them.
func (r *Runtime) restore(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, restoreTimeout)
	defer cancel()
	for _, k := range r.recorded() {
		if err := r.load(ctx, k); err != nil {
			log.G(ctx).WithError(err).WithField("id", k.id).Error("task is not restored")
			r.quarantine(k, err)
		}
	}
	// All tasks must be known to be with their agents before one of these says
	// which it has.
	for _, t := range r.all() {
		if client, err := t.sandbox.Agent(ctx); err == nil {
			t.move(client)
		}
	}
	var g errgroup.Group
	g.SetLimit(restoreLimit)
	for _, t := range r.all() {
		g.Go(func() error {
			t.restore(ctx)
			return nil
		})
	}
	_ = g.Wait()
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

// load makes a task of its record.
func (r *Runtime) load(ctx context.Context, k key) error {
	var s saved
	if _, err := record.Read(r.recordPath(k), &s); err != nil {
		return err
	}
	live, err := r.find(s.Sandbox)
	if err != nil {
		return err // quarantined: its tasks are left alone with it
	}
	if live == nil {
		// The sandbox is gone, and everything of it.
		t := r.newTask(k, nil, s)
		if err := r.deactivate(namespaces.WithNamespace(ctx, k.namespace), k.id); err != nil {
			return err
		}
		return t.erase()
	}
	t := r.newTask(k, live, s)
	if s.Exit != nil {
		t.process.status, t.process.exit = runtime.StoppedStatus, *s.Exit
		close(t.done)
	}
	return r.add(t)
}

// restore brings a loaded task up to date, or finishes what was begun.
func (t *Task) restore(ctx context.Context) {
	ctx = namespaces.WithNamespace(ctx, t.key.namespace)
	log := log.G(ctx).WithField("id", t.key.id)
	if t.over() {
		t.finish(exit{Status: killedStatus, At: t.sandbox.Exit().At})
	}
	switch t.saved.Phase {
	case creating:
		if err := t.discard(ctx); err != nil {
			log.WithError(err).Error("half-made task is not removed")
		}
		return
	case deleting:
		if err := t.release(ctx); err != nil {
			log.WithError(err).Error("deleted task is not removed")
		}
		return
	}
	if t.over() {
		return
	}
	if _, err := t.agent(ctx); err != nil {
		log.WithError(err).Warn("agent is not reached")
		go t.runtime.reach(t.saved.Sandbox, t.sandbox)
		return
	}
	if t.saved.Retain {
		if n, err := t.completeLog(ctx); err != nil {
			log.WithError(err).Warn("output that a former daemon had in hand is not in the log")
		} else if n > 0 {
			log.WithField("bytes", n).Info("completed the log of a task")
		}
	}
}

// completeLog appends to the container's log what a killed daemon had in hand.
func (t *Task) completeLog(ctx context.Context) (int, error) {
	path, err := t.logPath(ctx)
	if err != nil || path == "" {
		return 0, err
	}
	agent, err := t.agent(ctx)
	if err != nil {
		return 0, err
	}
	kept, err := agent.Retained(ctx, &api.RetainedRequest{ContainerId: t.key.id})
	if err != nil {
		return 0, errgrpc.ToNative(err)
	}
	var streams []crilog.Retained
	for name, o := range map[string]*api.Output{"stdout": kept.Stdout, "stderr": kept.Stderr} {
		if o != nil {
			streams = append(streams, crilog.Retained{Stream: name, Data: o.Data, Complete: o.Complete})
		}
	}
	return crilog.Complete(path, streams...)
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
