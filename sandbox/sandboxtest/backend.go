// Package sandboxtest proves that a backend keeps the promises of
// sandbox.Backend, with a suite that every backend runs, and has a backend in
// memory to test the framework with.
package sandboxtest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/task"
)

// Memory is a backend whose sandboxes are nothing but a file. Its hooks, where
// set, run within the call of the same name, and their error is the call's.
type Memory struct {
	OnCreate, OnStart, OnStop, OnDelete, OnRestore func(ctx context.Context) error

	// OnAgent is asked for the agent of every sandbox; without it there is none.
	OnAgent func(ctx context.Context) (*task.Client, error)

	mu   sync.Mutex
	made []*Box
}

var _ sandbox.Backend = (*Memory)(nil)

// Last is the sandbox made or restored last.
func (m *Memory) Last() *Box {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.made[len(m.made)-1]
}

// Create implements sandbox.Backend.
func (m *Memory) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	if len(spec.Options.TOML) > 0 {
		return nil, fmt.Errorf("options %q: there are none: %w", spec.Options.TOML, errdefs.ErrInvalidArgument)
	}
	if err := call(ctx, m.OnCreate); err != nil {
		return nil, err
	}
	return m.add(spec), nil
}

// Restore implements sandbox.Backend.
func (m *Memory) Restore(ctx context.Context, spec sandbox.Spec, _ json.RawMessage) (sandbox.Sandbox, error) {
	if err := call(ctx, m.OnRestore); err != nil {
		return nil, err
	}
	b := m.add(spec)
	if _, err := os.Stat(b.effect()); err != nil {
		b.End(0) // nothing runs
	}
	return b, nil
}

func (m *Memory) add(spec sandbox.Spec) *Box {
	b := &Box{memory: m, spec: spec, ended: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.made = append(m.made, b)
	return b
}

func call(ctx context.Context, hook func(context.Context) error) error {
	if hook == nil {
		return nil
	}
	return hook(ctx)
}

// Box is a sandbox of Memory.
type Box struct {
	memory *Memory
	spec   sandbox.Spec

	once  sync.Once
	exit  sandbox.Exit
	ended chan struct{}
}

var _ sandbox.Sandbox = (*Box)(nil)

// effect is the file that stands for what a sandbox is.
func (b *Box) effect() string { return filepath.Join(b.spec.Dir, "running") }

// End ends the sandbox as its own process would.
func (b *Box) End(status uint32) {
	b.once.Do(func() {
		b.exit = sandbox.Exit{Status: status, At: time.Now()}
		close(b.ended)
	})
}

// Start implements sandbox.Sandbox.
func (b *Box) Start(ctx context.Context) error {
	if err := call(ctx, b.memory.OnStart); err != nil {
		return err
	}
	return os.WriteFile(b.effect(), nil, 0o600)
}

// Agent implements sandbox.Sandbox.
func (b *Box) Agent(ctx context.Context) (*task.Client, error) {
	if b.memory.OnAgent != nil {
		return b.memory.OnAgent(ctx)
	}
	return nil, fmt.Errorf("agent of sandbox %s: %w", b.spec.ID, errdefs.ErrUnavailable)
}

// Prepare implements sandbox.Sandbox.
func (b *Box) Prepare(_ context.Context, c *sandbox.Container) (sandbox.Bundle, error) {
	path := filepath.Join(b.spec.Dir, "containers", c.ID)
	return sandbox.Bundle{Path: path}, os.MkdirAll(path, 0o700)
}

// Release implements sandbox.Sandbox.
func (b *Box) Release(_ context.Context, id string) error {
	return os.RemoveAll(filepath.Join(b.spec.Dir, "containers", id))
}

// Stop implements sandbox.Sandbox.
func (b *Box) Stop(ctx context.Context) error {
	if err := call(ctx, b.memory.OnStop); err != nil {
		return err
	}
	if err := os.Remove(b.effect()); err != nil && !os.IsNotExist(err) {
		return err
	}
	b.End(0)
	return nil
}

// Wait implements sandbox.Sandbox.
func (b *Box) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-b.ended:
		return b.exit, nil
	case <-ctx.Done():
		return sandbox.Exit{}, ctx.Err()
	}
}

// Delete implements sandbox.Sandbox.
func (b *Box) Delete(ctx context.Context) error { return call(ctx, b.memory.OnDelete) }

// Save implements sandbox.Sandbox.
func (b *Box) Save() (json.RawMessage, error) { return json.RawMessage(`{}`), nil }
