package sandbox

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	// metricsTimeout bounds Metrics: the CRI plugin asks all sandboxes one
	// after the other, each second, and sets no deadline.
	metricsTimeout = time.Second

	// metricsFresh is for how long a reading serves all who ask: less than the
	// time between two of the CRI plugin's.
	metricsFresh = 500 * time.Millisecond

	// metricsStale is for how long it stands in for one that does not come.
	metricsStale = 30 * time.Second
)

// meter has one reading of a sandbox's metrics under way at a time, for
// whoever asks meanwhile.
type meter struct {
	mu      sync.Mutex
	last    *types.Metric
	at      time.Time // of last, by the clock that is never set
	reading *reading  // nil if none is under way
}

type reading struct {
	began  time.Time
	done   chan struct{} // closed when what follows is set
	metric *types.Metric
	err    error
}

// Metrics returns the pod's own metrics. It does not wait long for them: those
// of a sandbox that does not answer are its last, with their time, while they
// are not too old.
func (c *Controller) Metrics(ctx context.Context, id string) (*types.Metric, error) {
	b, err := c.box(id)
	if err != nil {
		return nil, err
	}
	state, sandbox := b.current()
	if sandbox == nil {
		return nil, fmt.Errorf("metrics of sandbox %s: it is %s: %w", id, state, errdefs.ErrUnavailable)
	}
	s, ok := sandbox.(Statser)
	if !ok {
		return nil, fmt.Errorf("metrics of sandbox %s: sandboxer %s has none: %w", id, c.cfg.Name, errdefs.ErrNotImplemented)
	}
	metric, err := b.meter.read(ctx, func() (*types.Metric, error) { return c.measure(b, s) })
	if err != nil {
		return nil, fmt.Errorf("metrics of sandbox %s: %w", id, err)
	}
	return metric, nil
}

// measure asks the sandbox. It may be asked for longer than anybody waits.
func (c *Controller) measure(b *box, s Statser) (*types.Metric, error) {
	ctx, cancel := context.WithTimeout(c.life, metricsTimeout)
	defer cancel()
	now := timestamppb.Now()
	data, err := attempt(ctx, b.id, "measure", func() (typeurl.Any, error) { return s.Stats(ctx) })
	if err != nil {
		return nil, err
	}
	return &types.Metric{Timestamp: now, ID: b.id, Data: typeurl.MarshalProto(data)}, nil
}

// read returns a fresh reading, or the last if there will be none in time.
func (m *meter) read(ctx context.Context, measure func() (*types.Metric, error)) (*types.Metric, error) {
	m.mu.Lock()
	if last := m.last; m.younger(metricsFresh) {
		m.mu.Unlock()
		return last, nil
	}
	r := m.reading
	if r == nil {
		r = &reading{began: time.Now(), done: make(chan struct{})}
		m.reading = r
		go m.run(r, measure)
	}
	m.mu.Unlock()

	timer := time.NewTimer(time.Until(r.began.Add(metricsTimeout)))
	defer timer.Stop()
	select {
	case <-r.done:
		return r.metric, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timer.C:
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.younger(metricsStale) {
		return m.last, nil
	}
	return nil, fmt.Errorf("it does not answer since %v: %w", r.began.Format(time.RFC3339), errdefs.ErrUnavailable)
}

func (m *meter) run(r *reading, measure func() (*types.Metric, error)) {
	r.metric, r.err = measure()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reading = nil
	if r.err == nil {
		m.last, m.at = r.metric, r.began
	}
	close(r.done)
}

// younger says whether there is a reading that is. m.mu is held.
func (m *meter) younger(age time.Duration) bool {
	return m.last != nil && time.Since(m.at) < age
}
