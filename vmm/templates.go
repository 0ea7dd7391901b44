package vmm

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
)

var (
	fpTemplateKept    = failpoint.New("vmm/template/kept")
	fpTemplateRemoved = failpoint.New("vmm/template/removed")
)

const (
	// maxTemplates bounds the shapes of machines on a node: there is one for
	// each limit that pods have.
	maxTemplates = 8

	// maxTemplateBytes bounds what they take together. Each has some 50 MB,
	// whatever the machine's memory is.
	maxTemplateBytes = 1 << 30

	// restTime is how long nothing is built again that failed.
	restTime = 10 * time.Minute
)

// Templates are machines that were saved after they had booted, for pods to be
// cloned from. They are in a directory of the state file system, for the time of
// a boot of the host:
//
//	<key>       a template: the driver's files, and template.json
//	new-<key>   one that is being made, and its machine
//	old-<key>   one that is being removed
//
// A key is made of all that a machine's boot depends on: the content of files,
// the VMM's arguments, the boot of the host. The first pod that wants a template
// which there is not boots itself, and has it made in the background.
type Templates struct {
	dir    string
	reaper *pidfd.Reaper
	ctx    context.Context // of what is in the background
	cancel context.CancelFunc
	work   sync.WaitGroup
	pool   *pool

	mu    sync.Mutex
	known map[string]*saved     // by key
	sums  map[identity]string   // digests of files that were read
	rest  map[string]time.Time  // by shape: when it may be built again
	build bool                  // something is built
	done  map[chan struct{}]any // closed when it is; see Settled
}

// saved is a template.
type saved struct {
	key, dir string
	bytes    int64
	note     note

	turn    chan struct{}       // holds a token while it is verified
	checked map[string]identity // of the files; nil before it is verified
	used    time.Time           // guarded by Templates.mu, as is the next
	users   int
}

// note is the record of a template.
type note struct {
	Key    string            `json:"key"`
	Shape  string            `json:"shape"`  // the key without the files' content
	Inputs []input           `json:"inputs"` // what the key is made of
	Files  map[string]string `json:"files"`  // the template's: digests by name
}

// input is a file that was read.
type input struct {
	Identity identity `json:"identity"`
	Digest   string   `json:"digest"`
}

const (
	noteFile = "template.json"

	// poolDir is beside the templates' directory.
	poolDir = "pool"
)

// OpenTemplates opens those in dir. What an earlier daemon was about to make or
// remove is removed, its machine first. Close it.
func OpenTemplates(ctx context.Context, dir string, r *pidfd.Reaper) (*Templates, error) {
	t := &Templates{
		dir: dir, reaper: r, known: map[string]*saved{}, sums: map[identity]string{},
		rest: map[string]time.Time{}, done: map[chan struct{}]any{},
	}
	t.ctx, t.cancel = context.WithCancel(context.WithoutCancel(ctx))
	var err error
	if t.pool, err = openPool(ctx, t, filepath.Join(filepath.Dir(dir), poolDir)); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if err := t.open(path); err == nil {
			continue
		}
		if err := removeMold(ctx, r, path); err != nil {
			return nil, fmt.Errorf("remove what is left of a template: %w", err)
		}
	}
	return t, nil
}

// open takes up a template of an earlier daemon.
func (t *Templates) open(path string) error {
	s := &saved{key: filepath.Base(path), dir: path, turn: make(chan struct{}, 1)}
	same, err := record.Read(filepath.Join(path, noteFile), &s.note)
	if err != nil {
		return err
	}
	if !same || s.note.Key != s.key {
		return fmt.Errorf("template %s is of another boot or name: %w", s.key, errdefs.ErrNotFound)
	}
	info, err := os.Stat(filepath.Join(path, noteFile))
	if err != nil {
		return err
	}
	s.used = info.ModTime()
	if s.bytes, err = allocated(path); err != nil {
		return err
	}
	t.known[s.key] = s
	for _, i := range s.note.Inputs {
		t.sums[i.Identity] = i.Digest
	}
	return nil
}

// Close gives up what is being made, and the pool, and returns when nothing is
// left of them. Templates stay for the next daemon.
func (t *Templates) Close() error {
	t.mu.Lock() // who begins one has it
	t.cancel()
	t.mu.Unlock()
	t.work.Wait()
	return nil
}

// shape is what is asked for: a machine's files by their names.
type shape struct {
	driver Templater
	config Config
	files  []string
	text   string
	id     string
}

func newShape(d Templater, c Config) (shape, error) {
	s := shape{driver: d, config: c}
	var err error
	if s.files, s.text, err = d.Inputs(c); err != nil {
		return s, err
	}
	s.id = digest(append([]string{fmt.Sprintf("%T", d), s.text}, s.files...)...)
	return s, nil
}

// digest is of texts, short enough for a name.
func digest(texts ...string) string {
	h := sha256.New()
	for _, t := range texts {
		fmt.Fprintf(h, "%d %s\n", len(t), t)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// key is that of a shape's template. It has to know the files: ok is false for
// one that nobody has read as it is now.
func (t *Templates) key(s shape) (key string, ok bool) {
	texts := []string{record.Boot(), s.id}
	for _, path := range s.files {
		id, err := identify(path)
		if err != nil {
			return "", false
		}
		t.mu.Lock()
		sum, known := t.sums[id]
		t.mu.Unlock()
		if !known {
			return "", false
		}
		texts = append(texts, sum)
	}
	return digest(texts...), true
}

// find returns the template of a shape, to be given back by pass; nil if there
// is none.
func (t *Templates) find(s shape) *saved {
	key, ok := t.key(s)
	t.mu.Lock()
	defer t.mu.Unlock()
	found := t.known[key]
	if !ok || found == nil {
		return nil
	}
	found.users++
	return found
}

// take returns a template for a machine, to be given back by pass. If there is
// none it is nil, and may be one day.
func (t *Templates) take(ctx context.Context, s shape, within time.Duration) *saved {
	found := t.find(s)
	t.mu.Lock()
	if found == nil {
		t.begin(s, within)
		t.mu.Unlock()
		return nil
	}
	found.used = time.Now()
	t.mu.Unlock()
	if err := found.verify(ctx); err != nil {
		t.pass(found)
		if ctx.Err() == nil {
			t.broken(found, err)
		}
		return nil
	}
	// For the next daemon, to know which was used last.
	_ = os.Chtimes(filepath.Join(found.dir, noteFile), time.Time{}, found.used)
	return found
}

// pass gives a template back.
func (t *Templates) pass(s *saved) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.users--
}

// verify reads the files once, and says later whether they are still the same.
func (s *saved) verify(ctx context.Context) error {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	checked := map[string]identity{}
	for name, want := range s.note.Files {
		path := filepath.Join(s.dir, name)
		id, err := identify(path)
		if err != nil {
			return err
		}
		if known, ok := s.checked[name]; !ok || known != id {
			sum, id, err := sum(ctx, path)
			if err != nil {
				return err
			}
			if sum != want {
				return fmt.Errorf("%s has been changed: its SHA-256 was %s and is %s: %w", path, want, sum, errdefs.ErrDataLoss)
			}
			checked[name] = id
			continue
		}
		checked[name] = id
	}
	s.checked = checked
	return nil
}

// broken removes a template that cannot be cloned.
func (t *Templates) broken(s *saved, cause error) {
	t.mu.Lock()
	first := t.known[s.key] == s
	if first {
		delete(t.known, s.key)
		t.rest[s.note.Shape] = time.Now().Add(restTime)
	}
	t.mu.Unlock()
	if !first {
		return // others found the same
	}
	entry := log.L.WithError(cause).WithField("template", s.key)
	if err := t.remove(s); err != nil {
		entry = entry.WithField("removal", err)
	}
	entry.Warnf("pods boot, which is slower: their template cannot be cloned, and is not made again for %v", restTime)
}

// remove deletes a template that is not known any more.
func (t *Templates) remove(s *saved) error {
	old := filepath.Join(t.dir, "old-"+s.key)
	if err := os.RemoveAll(old); err != nil {
		return err
	}
	if err := os.Rename(s.dir, old); err != nil {
		return err
	}
	fpTemplateRemoved.Hit()
	return os.RemoveAll(old)
}

// keep makes a template known, and removes those that are too many: of the same
// shape, which nobody will ask for again, and those that were not used longest.
func (t *Templates) keep(s *saved) error {
	fpTemplateKept.Hit()
	t.mu.Lock()
	t.known[s.key] = s
	all := make([]*saved, 0, len(t.known))
	for _, k := range t.known {
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b *saved) int { return cmp.Compare(b.used.UnixNano(), a.used.UnixNano()) })
	var gone []*saved
	var count int
	var bytes int64
	for _, k := range all {
		count++
		bytes += k.bytes
		stale := k != s && k.note.Shape == s.note.Shape
		if k.users == 0 && (stale || count > maxTemplates || bytes > maxTemplateBytes) {
			count--
			bytes -= k.bytes
			delete(t.known, k.key)
			gone = append(gone, k)
		}
	}
	t.mu.Unlock()
	var errs []error
	for _, k := range gone {
		errs = append(errs, t.remove(k))
	}
	return errors.Join(errs...)
}

// knows says whether a template is still one.
func (t *Templates) knows(s *saved) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.known[s.key] == s
}

// building says whether one is made.
func (t *Templates) building() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.build
}

// enter counts goroutines that Close has to wait for, unless it was called.
func (t *Templates) enter(n int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil {
		return false
	}
	t.work.Add(n)
	return true
}

// Settled waits until nothing is built. It is for tests and benchmarks.
func (t *Templates) Settled(ctx context.Context) error {
	t.mu.Lock()
	if !t.build {
		t.mu.Unlock()
		return nil
	}
	c := make(chan struct{})
	t.done[c] = nil
	t.mu.Unlock()
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Keys are those of the templates there are.
func (t *Templates) Keys() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var keys []string
	for k := range t.known {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
