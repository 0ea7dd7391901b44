package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
	"github.com/containerd-kuasar/containerd-kuasar/task/hold"
	"github.com/containerd-kuasar/containerd-kuasar/task/stdio"
)

type key struct{ namespace, id string }

// container is one entry of the table.
type container struct {
	key
	dir     string // of its records
	runtime Runtime
	init    *process

	mu    sync.Mutex
	quiet sync.Cond // of busy
	execs map[string]*process
	busy  int  // execs that are being started, or whose exit is not yet told
	dying bool // the first process exited: nothing can be started any more
	oom   bool // a process was killed at the memory limit, and it was told
}

// process is the first process of a container, or an exec.
type process struct {
	c    *container
	exec string        // id; empty for the first
	turn chan struct{} // holds one element while a call has the turn
	done chan struct{} // closed once it exited or was deleted

	// What follows is guarded by c.mu. What saved tells is written to disk by
	// whoever has the turn.
	saved saved
	io    stdio.IO
	fd    *os.File // pidfd; nil before the start and after the exit
}

// saved is a process's record.
type saved struct {
	Status      status      `json:"status"`
	Pid         int         `json:"pid,omitempty"`
	Start       uint64      `json:"start,omitempty"` // see pidfd.StartTime
	Stdin       string      `json:"stdin,omitempty"`
	Stdout      string      `json:"stdout,omitempty"`
	Stderr      string      `json:"stderr,omitempty"`
	Terminal    bool        `json:"terminal,omitempty"`
	StdinClosed bool        `json:"stdinClosed,omitempty"`
	Retain      bool        `json:"retain,omitempty"` // see api.RetainOutput
	Exit        *pidfd.Exit `json:"exit,omitempty"`

	// Of first processes.
	Bundle     string `json:"bundle,omitempty"`
	SharedPID  bool   `json:"sharedPID,omitempty"` // no pid namespace of its own
	Checkpoint string `json:"checkpoint,omitempty"`
	OptionsURL string `json:"optionsURL,omitempty"`
	Options    []byte `json:"options,omitempty"`

	// Of execs that were not started.
	Spec json.RawMessage `json:"spec,omitempty"`
}

func newContainer(root string, k key, runtime Runtime, s saved) *container {
	c := &container{
		key:     k,
		dir:     filepath.Join(root, k.namespace, k.id),
		runtime: runtime,
		execs:   map[string]*process{},
	}
	c.quiet.L = &c.mu
	c.init = newProcess(c, "", s)
	return c
}

func newProcess(c *container, exec string, s saved) *process {
	return &process{c: c, exec: exec, saved: s, turn: make(chan struct{}, 1), done: make(chan struct{})}
}

// ref is made anew each time, so that it costs nothing between calls.
func (c *container) ref() Ref {
	c.mu.Lock()
	s := c.init.saved
	c.mu.Unlock()
	r := Ref{Namespace: c.namespace, ID: c.id, Dir: filepath.Join(c.dir, "runtime"), Bundle: s.Bundle}
	if s.OptionsURL != "" {
		r.Options = &anypb.Any{TypeUrl: s.OptionsURL, Value: s.Options}
	}
	return r
}

// find returns the process with that exec id, the first one for "".
func (c *container) find(exec string) (*process, error) {
	if exec == "" {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.execs[exec]
	if p == nil {
		return nil, fmt.Errorf("process %s of container %s does not exist: %w", exec, c.id, errdefs.ErrNotFound)
	}
	return p, nil
}

// take waits for the turn.
func (p *process) take(ctx context.Context) error {
	select {
	case p.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s waits for another call that is under way: %w", p, context.Cause(ctx))
	}
}

func (p *process) pass() { <-p.turn }

func (p *process) String() string {
	if p.exec == "" {
		return "container " + p.c.id
	}
	return "process " + p.exec + " of container " + p.c.id
}

func (p *process) path() string {
	if p.exec == "" {
		return filepath.Join(p.c.dir, "task.json")
	}
	return filepath.Join(p.c.dir, execPrefix+p.exec+".json")
}

func (p *process) key(kind string) string {
	return hold.Key(p.c.namespace, p.c.id, p.exec, kind)
}

// get copies what is known of the process.
func (p *process) get() saved {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	return p.saved
}

func (p *process) check(op operation) error {
	if err := p.get().Status.check(op); err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	return nil
}

// write announces a change on disk only. set is for what is known of it.
func (p *process) write(change func(*saved)) error {
	s := p.get()
	change(&s)
	if err := record.Write(p.path(), &s); err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	return nil
}

func (p *process) set(change func(*saved)) {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	change(&p.saved)
}

// become changes the status. A change that next does not list is a mistake
// of ours, and is not done.
func (p *process) become(to status) error {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	if !p.saved.Status.canBecome(to) {
		return fmt.Errorf("%s cannot turn from %s into %s: %w", p, p.saved.Status, to, errdefs.ErrInternal)
	}
	p.saved.Status = to
	return nil
}

func (p *process) config() stdio.Config {
	s := p.get()
	return stdio.Config{
		Namespace: p.c.namespace, Container: p.c.id, Exec: p.exec,
		Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr,
		Terminal: s.Terminal, StdinClosed: s.StdinClosed, Retain: s.Retain,
	}
}

// closeIO drops the process's stdio; it may have none.
func (p *process) closeIO() error {
	p.c.mu.Lock()
	sio := p.io
	p.io = nil
	p.c.mu.Unlock()
	if sio == nil {
		return nil
	}
	if err := sio.Close(); err != nil {
		return fmt.Errorf("close stdio of %s: %w", p, err)
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
