package vmm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/log"

	"github.com/containerd-kuasar/containerd-kuasar/internal/cgroup"
	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/host"
)

const (
	// maxPool bounds the machines that a handler may ask for: each has its
	// memory.
	maxPool = 16

	// After a failure the pool rests, longer each time in a row.
	minFillRest, maxFillRest = 10 * time.Second, 10 * time.Minute

	// lull is how long no pod has to have been started before a machine is made:
	// its containers start now.
	lull = time.Second

	// So it does while memory is short.
	minCalm, maxCalm = time.Minute, 16 * time.Minute
)

// pool has clones ready for pods to come: loaded, and stopped before their first
// instruction. It makes one at a time, when nothing else is made of templates,
// and gives all of them back when memory is short. They are the daemon's until a
// pod takes them, each in a directory of the pool's; the next daemon ends them.
type pool struct {
	store *Templates
	dir   string
	group string // cgroup of the machines that nobody has taken
	wake  chan struct{}

	mu      sync.Mutex
	runs    bool
	kinds   map[string]*kind // by shape
	gone    []*spare         // to be ended
	ending  int              // that are being ended
	calm    pause            // memory is short
	quiet   time.Time        // pods are being started until then
	changed chan struct{}    // closed at a change; see Filled
}

// openPool ends the machines of an earlier daemon.
func openPool(ctx context.Context, t *Templates, dir string) (*pool, error) {
	p := &pool{
		store: t, dir: dir, group: host.Cgroup("", "pool-"+digest(dir)[:8], false),
		wake: make(chan struct{}, 1), kinds: map[string]*kind{}, changed: make(chan struct{}),
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		err := endMachine(ctx, t.reaper, path)
		if err == nil {
			err = removeSpare(path)
		}
		if err != nil {
			return nil, fmt.Errorf("remove what is left of a pool of machines: %w", err)
		}
	}
	return p, p.close()
}

// close removes what is left when there is no machine. Of one that did not end it
// leaves the record, from which the next daemon knows it.
func (p *pool) close() error {
	err := os.Remove(p.dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(cgroup.Remove(p.group), err)
}

// want says that pods of a shape want so many machines ready from now on.
func (p *pool) want(s shape, size int, within time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := p.kinds[s.id]
	if k == nil {
		k = &kind{shape: s, labels: labelsOf(s.config)}
		p.kinds[s.id] = k
	}
	k.size, k.within = size, within
	if p.runs || !p.store.enter(2) {
		return
	}
	p.runs = true
	go func() {
		defer p.store.work.Done()
		p.run()
	}()
	go func() {
		defer p.store.work.Done()
		p.watch()
	}()
}

// take returns a machine of a template, which is the caller's from then on; nil
// if there is none.
func (p *pool) take(id string, from *saved) *spare {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := p.kinds[id]
	if k == nil {
		return nil
	}
	for i, s := range k.ready {
		if s.from == from && s.lives() {
			k.ready = slices.Delete(k.ready, i, i+1)
			p.change(k)
			poolTaken.WithValues(k.labels...).Inc()
			return s
		}
	}
	poolMissed.WithValues(k.labels...).Inc()
	return nil
}

// change tells of another number of machines. p.mu is held.
func (p *pool) change(k *kind) {
	ready := 0
	for _, other := range p.kinds { // also those that differ in what is no label
		if slices.Equal(other.labels, k.labels) {
			ready += len(other.ready)
		}
	}
	poolReady.WithValues(k.labels...).Set(float64(ready))
	p.notify()
}

// notify wakes those who wait for a change. p.mu is held.
func (p *pool) notify() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// refill looks soon what is missing: a pod has been started, or there is another
// template.
func (p *pool) refill() {
	p.mu.Lock()
	for _, k := range p.kinds {
		k.lacks = false
	}
	p.quiet = time.Now().Add(lull)
	p.mu.Unlock()
	p.look()
}

func (p *pool) look() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// run makes machines until the store is closed, and leaves none.
func (p *pool) run() {
	for {
		k, gone, wait := p.next(time.Now())
		p.end(gone)
		if k != nil {
			p.fill(k)
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-p.wake:
		case <-timer.C:
		case <-p.store.ctx.Done():
			timer.Stop()
			p.drain()
			return
		}
		timer.Stop()
	}
}

// drain ends all machines.
func (p *pool) drain() {
	p.mu.Lock()
	for _, k := range p.kinds {
		p.gone = append(p.gone, k.ready...)
		k.ready = nil
		p.change(k)
	}
	gone := p.gone
	p.gone, p.ending = nil, len(gone)
	p.mu.Unlock()
	p.end(gone)
	if err := p.close(); err != nil {
		log.L.WithError(err).Warn("something is left of the pool of machines: the next daemon removes it")
	}
}

// end ends machines that no pod has.
func (p *pool) end(all []*spare) {
	for _, s := range all {
		ctx, cancel := context.WithTimeout(context.Background(), undoTime)
		if err := s.end(ctx); err != nil {
			log.L.WithError(err).WithField("directory", s.home).Warn("a machine of the pool is left: the next daemon ends it")
		}
		cancel()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ending = 0
	p.notify()
}

// next says what is to be done: which machines are to be ended, and for whom one
// is to be made, or when to look again.
func (p *pool) next(now time.Time) (fill *kind, gone []*spare, wait time.Duration) {
	building := p.store.building()
	p.mu.Lock()
	defer p.mu.Unlock()
	wait = time.Hour // it is woken
	for _, k := range p.kinds {
		count := len(k.ready)
		k.ready = slices.DeleteFunc(k.ready, func(s *spare) bool {
			stale := !p.store.knows(s.from)
			if stale {
				p.gone = append(p.gone, s)
			}
			return stale
		})
		if len(k.ready) != count {
			p.change(k)
		}
		if building || k.lacks || len(k.ready) >= k.size {
			continue
		}
		until := later(p.quiet, later(k.rest.until, p.calm.until))
		if until.After(now) {
			wait = min(wait, until.Sub(now))
			continue
		}
		fill = k
	}
	gone, p.gone, p.ending = p.gone, nil, len(p.gone)
	return fill, gone, wait
}

// fill makes one machine.
func (p *pool) fill(k *kind) {
	ctx, cancel := context.WithTimeoutCause(p.store.ctx, k.within, fmt.Errorf("it takes more than %v", k.within))
	defer cancel()
	from := p.store.find(k.shape)
	if from == nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		k.lacks = true
		return
	}
	defer p.store.pass(from)
	began := time.Now()
	s, err := p.make(ctx, k, from)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err != nil:
		if p.store.ctx.Err() == nil {
			p.failed(k, err)
		}
	case p.calm.until.After(time.Now()): // memory got short meanwhile
		p.gone = append(p.gone, s)
	default:
		s.kind = k
		k.ready = append(k.ready, s)
		if !s.lives() { // its end was told too early
			p.lose(s)
			return
		}
		p.change(k)
		log.L.WithFields(log.Fields{"ready": len(k.ready), "of": k.size, "memory": k.shape.config.Memory, "took": time.Since(began)}).Info("machine made for the pool")
	}
}

// failed has a kind rest, and says why the first time. p.mu is held.
func (p *pool) failed(k *kind, cause error) {
	if k.rest.begin(time.Now(), minFillRest, maxFillRest) {
		log.L.WithError(cause).WithField("memory", k.shape.config.Memory).Warnf("pods are cloned, which is slower: the pool has no machine that works; another one is made after %v at first", k.rest.length)
	}
}

// blame has a kind rest whose machine failed when a pod had taken it.
func (p *pool) blame(s *spare, cause error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed(s.kind, cause)
}

// died is told of the end of a machine that no pod has.
func (p *pool) died(s *spare) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.kind != nil {
		p.lose(s)
	}
}

// lose gives up a machine that has ended. p.mu is held.
func (p *pool) lose(s *spare) {
	i := slices.Index(s.kind.ready, s)
	if i < 0 {
		return
	}
	s.kind.ready = slices.Delete(s.kind.ready, i, i+1)
	p.gone = append(p.gone, s)
	p.failed(s.kind, fmt.Errorf("a machine of the pool ended with status %d%s", s.proc.exit.Status, tail(s.log())))
	p.change(s.kind)
	p.look()
}

// squeeze gives all machines back: memory is short.
func (p *pool) squeeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calm.begin(time.Now(), minCalm, maxCalm)
	count := 0
	for _, k := range p.kinds {
		for _, s := range k.ready {
			s.kill() // now; the rest of it may wait for a machine that is being made
		}
		count += len(k.ready)
		poolGivenBack.WithValues(k.labels...).Inc(float64(len(k.ready)))
		p.gone = append(p.gone, k.ready...)
		k.ready = nil
		p.change(k)
	}
	if count > 0 {
		log.L.WithFields(log.Fields{"machines": count, "rest": p.calm.length}).Info("memory is short: the pool of machines is given back")
	}
	p.look()
}

// make loads a machine.
func (p *pool) make(ctx context.Context, k *kind, from *saved) (_ *spare, err error) {
	if err := enough(k.shape.config.Memory); err != nil {
		return nil, err
	}
	if err := from.verify(ctx); err != nil {
		if ctx.Err() == nil {
			p.store.broken(from, err)
		}
		return nil, err
	}
	s := &spare{from: from, reaper: p.store.reaper, group: p.group, name: rand.Text()}
	s.home = filepath.Join(p.dir, s.name)
	s.dir = filepath.Join(s.home, vmDir)
	s.owner = func(pidfd.Exit) { p.died(s) }
	if err := s.load(ctx, k.shape); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		return nil, errors.Join(err, s.end(ctx))
	}
	return s, nil
}

// Filled waits until the pool has all that its handlers want. It is for tests
// and benchmarks.
func (t *Templates) Filled(ctx context.Context) error {
	for {
		full, changed := t.pool.full()
		if full {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (p *pool) full() (bool, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, k := range p.kinds {
		if len(k.ready) < k.size {
			return false, p.changed
		}
	}
	return true, nil
}
