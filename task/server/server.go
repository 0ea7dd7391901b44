package server

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/task/phase"
	"github.com/containerd-kuasar/containerd-kuasar/task/stdio"
)

// Holder keeps descriptors alive outside of this process; see task/hold.
type Holder interface {
	Hold(key string, f *os.File) error
	Drop(key string)
}

// Watcher reports to Server.OOM; see task/oom.
type Watcher interface {
	Add(id string, paths map[string]string) error
	Remove(id string)
}

// Config is what a Server works with. It closes none of it.
type Config struct {
	// Dir is where records go, on the state file system; the Server makes it.
	Dir string

	// Version of the build, for people.
	Version string

	// Runtimes by the type URL of CreateTaskRequest.Options, "" for none.
	Runtimes map[string]Runtime

	Stdio  stdio.Opener
	Reaper *pidfd.Reaper
	Holder Holder
	OOM    Watcher

	// Refresh, if not nil, is called with a bundle's directory before anything
	// of it is read, for file systems that remember what they had once.
	Refresh func(bundle string) error
}

// Server implements the Task API and api.AgentService. Calls wait until
// Restore is done.
type Server struct {
	cfg    Config
	events events
	ready  chan struct{}

	mu         sync.Mutex
	containers map[key]*container
	reserved   map[key]chan struct{} // being created; closed when that has ended

	quarantined map[key]error // not restored, by the cause

	phases phase.Log
}

// New makes a Server that answers once it is restored.
func New(cfg Config) *Server {
	return &Server{
		cfg:        cfg,
		ready:      make(chan struct{}),
		containers: map[key]*container{},
		reserved:   map[key]chan struct{}{},

		quarantined: map[key]error{},
	}
}

// namespaceHeader is what containerd puts its namespace under in the metadata
// of ttrpc (pkg/namespaces).
const namespaceHeader = "containerd-namespace-ttrpc"

// enter is the first thing of every call: it waits until the Server is
// restored and returns the caller's namespace.
func (s *Server) enter(ctx context.Context) (string, error) {
	if err := s.await(ctx); err != nil {
		return "", err
	}
	ns, ok := ttrpc.GetMetadataValue(ctx, namespaceHeader)
	if !ok || !valid(ns) {
		return "", fmt.Errorf("namespace %q in metadata %s: %w", ns, namespaceHeader, errdefs.ErrInvalidArgument)
	}
	return ns, nil
}

func (s *Server) await(ctx context.Context) error {
	select {
	case <-s.ready:
		return nil
	default:
	}
	select {
	case <-s.ready:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("agent is not restored: it waits for the daemon's connection to hold.sock: %w: %w",
			context.Cause(ctx), errdefs.ErrUnavailable)
	}
}

// container finds the one that a call is about. For one that is being created
// it waits: its creator may have died or given up, and who removes what that
// left must not be told that there is nothing.
func (s *Server) container(ctx context.Context, id string) (*container, error) {
	ns, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	k := key{ns, id}
	for {
		s.mu.Lock()
		c, creating, lost := s.containers[k], s.reserved[k], s.quarantined[k]
		s.mu.Unlock()
		switch {
		case lost != nil:
			return nil, lost
		case c != nil:
			return c, nil
		case creating == nil:
			return nil, fmt.Errorf("container %s is not created: %w", id, errdefs.ErrNotFound)
		}
		select {
		case <-creating:
		case <-ctx.Done():
			return nil, fmt.Errorf("container %s is being created: %w", id, ctx.Err())
		}
	}
}

// process finds the one that a call is about.
func (s *Server) process(ctx context.Context, id, exec string) (*process, error) {
	c, err := s.container(ctx, id)
	if err != nil {
		return nil, err
	}
	return c.find(exec)
}

// reserve makes sure that k is created once.
func (s *Server) reserve(k key) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, r := s.reserved[k]
	_, c := s.containers[k]
	if r || c {
		return fmt.Errorf("container %s: %w", k.id, errdefs.ErrAlreadyExists)
	}
	s.reserved[k] = make(chan struct{})
	return nil
}

// settle ends the reservation, if there is one, with c in the table if that is
// not nil.
func (s *Server) settle(k key, c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c != nil {
		s.containers[k] = c
		delete(s.quarantined, k) // what was there has been moved away
	}
	if creating := s.reserved[k]; creating != nil {
		close(creating)
		delete(s.reserved, k)
	}
}

func (s *Server) drop(k key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, k)
}

func (s *Server) all() []*container {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		list = append(list, c)
	}
	return list
}

// maxID is containerd's limit of identifiers (pkg/identifiers).
const maxID = 76

// valid says whether id is one of containerd's, and so also a file name.
func valid(id string) bool {
	if len(id) == 0 || len(id) > maxID || !alnum(id[0]) {
		return false
	}
	for i := 1; i < len(id); i++ {
		switch c := id[i]; {
		case alnum(c), c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}

func alnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func (s *Server) mkdir(c *container) error {
	if err := os.MkdirAll(filepath.Dir(c.dir), 0o711); err != nil {
		return fmt.Errorf("create container %s: %w", c.id, err)
	}
	err := os.Mkdir(c.dir, 0o711)
	if os.IsExist(err) {
		return fmt.Errorf("create container %s: %s is left of one that could not be restored: move it away: %w", c.id, c.dir, errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return fmt.Errorf("create container %s: %w", c.id, err)
	}
	return os.Mkdir(filepath.Join(c.dir, "runtime"), 0o711)
}
