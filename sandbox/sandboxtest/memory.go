// Package sandboxtest proves that a backend keeps the promises of
// sandbox.Backend, with a suite that every backend runs, and has a backend in
// memory to test with whatever is above one.
package sandboxtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/task"
)

// Memory is a backend whose sandboxes are nothing but a file. Its hooks, where
// set, run within the call of the same name, before its effect: they may fail,
// block and panic, and their error is the call's.
type Memory struct {
	OnCreate, OnStart, OnStop, OnDelete, OnRestore, OnPrepare, OnRelease, OnSave func(ctx context.Context) error

	// OnAgent is asked for the agent of every sandbox; without it there is none.
	OnAgent func(ctx context.Context) (*task.Client, error)

	// World is a directory that has a file for each sandbox that lives, as the
	// kernel has its processes. Without it the file is in the sandbox's own
	// directory, as "running".
	World string

	// Extras makes sandboxes that have all that is optional: see Full.
	Extras *Extras

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

// Made counts the sandboxes made and restored.
func (m *Memory) Made() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.made)
}

// Create implements sandbox.Backend.
func (m *Memory) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	if len(spec.Options.TOML) > 0 {
		return nil, fmt.Errorf("options %q: there are none: %w", spec.Options.TOML, errdefs.ErrInvalidArgument)
	}
	if err := call(ctx, m.OnCreate); err != nil {
		return nil, err
	}
	_, s := m.add(spec)
	return s, nil
}

// Restore implements sandbox.Backend.
func (m *Memory) Restore(ctx context.Context, spec sandbox.Spec, saved json.RawMessage) (sandbox.Sandbox, error) {
	if err := call(ctx, m.OnRestore); err != nil {
		return nil, err
	}
	b, s := m.add(spec)
	if len(saved) > 0 {
		if err := json.Unmarshal(saved, &b.memo); err != nil {
			return nil, fmt.Errorf("restore sandbox %s: %w: %w", spec.ID, err, errdefs.ErrDataLoss)
		}
	}
	if !b.Lives() {
		b.End(0)
	}
	return s, nil
}

func (m *Memory) add(spec sandbox.Spec) (*Box, sandbox.Sandbox) {
	b := &Box{memory: m, spec: spec, ended: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.made = append(m.made, b)
	if m.Extras != nil {
		return b, &Full{Box: b, extras: m.Extras}
	}
	return b, b
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

	mu   sync.Mutex
	memo string
}

var _ sandbox.Sandbox = (*Box)(nil)

// Spec is what the sandbox was made of.
func (b *Box) Spec() sandbox.Spec { return b.spec }

// effect is the file that stands for what a sandbox is.
func (b *Box) effect() string {
	if b.memory.World != "" {
		return filepath.Join(b.memory.World, b.spec.ID)
	}
	return filepath.Join(b.spec.Dir, "running")
}

// Lives says whether the sandbox has its effect.
func (b *Box) Lives() bool {
	_, err := os.Stat(b.effect())
	return err == nil
}

// End ends the sandbox as its own process would.
func (b *Box) End(status uint32) {
	b.once.Do(func() {
		_ = os.Remove(b.effect())
		b.exit = sandbox.Exit{Status: status, At: time.Now()}
		close(b.ended)
	})
}

// Note changes what Save returns, and saves it as a backend does that changes
// between the Controller's calls.
func (b *Box) Note(ctx context.Context, memo string) error {
	b.mu.Lock()
	b.memo = memo
	b.mu.Unlock()
	return b.spec.Saved(ctx)
}

// Memo is what was noted, in this or a former life.
func (b *Box) Memo() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.memo
}

// Start implements sandbox.Sandbox.
func (b *Box) Start(ctx context.Context) error {
	if err := call(ctx, b.memory.OnStart); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
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
func (b *Box) Prepare(ctx context.Context, c *sandbox.Container) (sandbox.Bundle, error) {
	if err := call(ctx, b.memory.OnPrepare); err != nil {
		return sandbox.Bundle{}, err
	}
	path := b.bundle(c.ID)
	return sandbox.Bundle{Path: path}, os.MkdirAll(path, 0o700)
}

func (b *Box) bundle(id string) string { return filepath.Join(b.spec.Dir, "containers", id) }

// Release implements sandbox.Sandbox.
func (b *Box) Release(ctx context.Context, id string) error {
	if err := call(ctx, b.memory.OnRelease); err != nil {
		return err
	}
	return os.RemoveAll(b.bundle(id))
}

// Stop implements sandbox.Sandbox.
func (b *Box) Stop(ctx context.Context) error {
	if err := call(ctx, b.memory.OnStop); err != nil {
		return err
	}
	if err := os.Remove(b.effect()); err != nil && !errors.Is(err, fs.ErrNotExist) {
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
func (b *Box) Save() (json.RawMessage, error) {
	if err := call(context.Background(), b.memory.OnSave); err != nil {
		return nil, err
	}
	return json.Marshal(b.Memo())
}
