package sandbox

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
)

var errBroken = errors.New("injected")

// A reading is shared by all who ask at about the same time.
func TestMetricsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m meter
		var readings atomic.Int32
		measure := func() (*types.Metric, error) {
			readings.Add(1)
			elapse(metricsFresh / 10)
			return &types.Metric{}, nil
		}
		ask := func() {
			var all sync.WaitGroup
			for range 10 {
				all.Go(func() {
					if _, err := m.read(t.Context(), measure); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
		}
		ask()
		ask()
		if n := readings.Load(); n != 1 {
			t.Errorf("%d readings, want 1", n)
		}
		elapse(metricsFresh)
		ask()
		if n := readings.Load(); n != 2 {
			t.Errorf("%d readings, want 2", n)
		}
	})
}

// A sandbox that does not answer costs who asks no more than metricsTimeout in
// all, and its last metrics stand in until they are stale.
func TestMetricsOfASandboxThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m meter
		first := &types.Metric{ID: "first"}
		read := func(measure func() (*types.Metric, error)) (*types.Metric, time.Duration, error) {
			began := time.Now()
			got, err := m.read(t.Context(), measure)
			return got, time.Since(began), err
		}
		if got, _, err := read(func() (*types.Metric, error) { return first, nil }); got != first || err != nil {
			t.Fatalf("got %v, %v", got, err)
		}
		elapse(metricsFresh)
		release := make(chan struct{})
		hang := func() (*types.Metric, error) { <-release; return nil, errBroken }
		if got, took, err := read(hang); got != first || err != nil || took != metricsTimeout {
			t.Errorf("got %v, %v after %v", got, err, took)
		}
		if got, took, err := read(hang); got != first || err != nil || took != 0 {
			t.Errorf("the next: got %v, %v after %v", got, err, took)
		}
		elapse(metricsStale)
		if _, took, err := read(hang); !errdefs.IsUnavailable(err) || took != 0 {
			t.Errorf("when they are stale: %v after %v", err, took)
		}
		close(release)
		synctest.Wait()
		second := &types.Metric{ID: "second"}
		if got, _, err := read(func() (*types.Metric, error) { return second, nil }); got != second || err != nil {
			t.Errorf("when it answers again: got %v, %v", got, err)
		}
	})
}

func TestMetricsWithoutAny(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m meter
		if _, err := m.read(t.Context(), func() (*types.Metric, error) { return nil, errBroken }); !errors.Is(err, errBroken) {
			t.Errorf("error %v", err)
		}
		release := make(chan struct{})
		hang := func() (*types.Metric, error) { <-release; return nil, nil }
		if _, err := m.read(t.Context(), hang); !errdefs.IsUnavailable(err) {
			t.Errorf("it hangs: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := m.read(ctx, hang); err == nil {
			t.Error("canceled and yet answered")
		}
		close(release)
	})
}

// elapse lets time pass on the clock of a synctest bubble, where that takes
// none.
func elapse(d time.Duration) { <-time.After(d) }
