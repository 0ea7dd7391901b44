package sandboxtest

import (
	"context"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
)

// answersDuringStart holds a start and asks for everything that must not wait
// for it.
func answersDuringStart(t *testing.T, b *bench) {
	g := b.gated(beforeStart)
	g.cancels = true
	b.must(b.create("one"))
	started := async(func() error {
		_, err := b.Start(b.ctx, "one")
		return err
	})
	b.reach(g)
	b.want("one", notReady)
	if _, err := b.Metrics(b.ctx, "one"); err != nil && !errdefs.IsNotImplemented(err) {
		t.Logf("metrics: %v", err) // it has none yet
	}
	if _, err := b.Platform(b.ctx, "one"); err != nil {
		t.Errorf("platform: %v", err)
	}
	ctx, cancel := context.WithCancel(b.ctx)
	cancel()
	if _, err := b.Wait(ctx, "one"); err == nil {
		t.Error("a starting sandbox has ended")
	}
	live, err := b.Get("one")
	b.must(err)
	if live.Running() {
		t.Error("a starting sandbox takes containers")
	}
	b.must(b.create("two")) // another has nothing to do with it
	b.must(b.shutdown("two"))
	close(g.open)
	b.must(b.await("start", started))
	b.want("one", ready)
	b.must(b.shutdown("one"))
	b.gone("one")
}

// endDuringStart cancels a start by another call.
func endDuringStart(end func(*bench, string) error) func(*testing.T, *bench) {
	return func(t *testing.T, b *bench) {
		g := b.gated(beforeStart)
		g.cancels = true
		b.must(b.create("one"))
		started := async(func() error {
			_, err := b.Start(b.ctx, "one")
			return err
		})
		b.reach(g)
		b.must(end(b, "one"))
		if err := b.await("start", started); err == nil {
			t.Error("a start succeeded that was canceled")
		}
		b.gone("one") // the client of a start that failed never calls Shutdown
	}
}

// canceledStart has a caller that gives up.
func canceledStart(t *testing.T, b *bench) {
	g := b.gated(beforeStart)
	g.cancels = true
	b.must(b.create("one"))
	ctx, cancel := context.WithCancel(b.ctx)
	started := async(func() error {
		_, err := b.Start(ctx, "one")
		return err
	})
	b.reach(g)
	cancel()
	if err := b.await("start", started); err == nil {
		t.Error("a start succeeded that was canceled")
	}
	b.gone("one")
}

// manyAtOnce is for the race detector: sandboxes that have nothing to do with
// each other.
func manyAtOnce(t *testing.T, b *bench) {
	var g sync.WaitGroup
	for _, id := range []string{"a", "b", "c", "d", "e", "f"} {
		g.Go(func() {
			if err := b.create(id); err != nil {
				t.Error(err)
				return
			}
			if _, err := b.Start(b.ctx, id); err != nil {
				t.Error(err)
			}
			if s, err := b.Status(b.ctx, id, true); err != nil || s.State != ready {
				t.Errorf("status %+v, %v", s, err)
			}
			if err := b.stop(id); err != nil {
				t.Error(err)
			}
			if err := b.shutdown(id); err != nil {
				t.Error(err)
			}
			b.gone(id)
		})
	}
	g.Wait()
}

// oneByMany is for the race detector: every call on one sandbox at once. Each
// may win or lose; what is left is nothing.
func oneByMany(t *testing.T, b *bench) {
	var g sync.WaitGroup
	for _, id := range []string{"a", "b", "c", "d"} {
		b.must(b.create(id))
		for range 3 {
			g.Go(func() { _, _ = b.Start(b.ctx, id) })
			g.Go(func() {
				if _, err := b.Status(b.ctx, id, true); err != nil && !errdefs.IsNotFound(err) {
					t.Error(err)
				}
			})
			g.Go(func() {
				if err := b.stop(id); err != nil {
					t.Error(err)
				}
			})
			g.Go(func() { _, _ = b.Platform(b.ctx, id) })
			g.Go(func() { _ = b.create(id) })
		}
		g.Go(func() { _, _ = b.Metrics(b.ctx, id) })
		g.Go(func() { _, _ = b.Wait(b.ctx, id) })
		g.Go(func() {
			if live, err := b.Get(id); err == nil {
				_ = live.Running()
				_ = live.Release(b.ctx, "none")
				<-live.Done()
				_ = live.Exit()
			}
		})
		g.Go(func() {
			if err := b.shutdown(id); err != nil {
				t.Error(err)
			}
		})
	}
	b.settle(&g)
	for _, id := range []string{"a", "b", "c", "d"} {
		b.must(b.shutdown(id))
		b.gone(id)
	}
}

// settle waits for the callers, and ends the sandboxes that the last create
// left to those who wait for an end.
func (b *bench) settle(g *sync.WaitGroup) {
	b.t.Helper()
	done := async(func() error {
		g.Wait()
		return nil
	})
	for {
		for _, id := range []string{"a", "b", "c", "d"} {
			b.must(b.shutdown(id))
		}
		select {
		case <-done:
			return
		case <-b.ctx.Done():
			b.t.Fatal("a call does not end")
		default:
		}
	}
}
