package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// benchStart: one pod with one container after the other, host network and
// pod network.
func benchStart(ctx context.Context, b *bench) error {
	for _, network := range []struct {
		name   string
		host   bool
		target float64
	}{
		{"start, host network", true, 0.4},
		{"start, pod network", false, 0.6},
	} {
		starts := map[string]*starts{b.ours: {}, bed.Stock: {}}
		_, err := b.inTurn(func(handler string) (time.Duration, error) {
			p, took, err := b.start(ctx, shape{handler: handler, hostNetwork: network.host})
			if err != nil {
				return 0, err
			}
			starts[handler].add(p, took)
			return took, b.remove(ctx, p)
		})
		if err != nil {
			return err
		}
		b.report.starts(network.name, starts[b.ours], starts[bed.Stock], network.target)
	}
	return nil
}

// inTurn takes b.n samples of each handler, one of each after the other.
func (b *bench) inTurn(sample func(handler string) (time.Duration, error)) (map[string][]time.Duration, error) {
	samples := map[string][]time.Duration{}
	for i := range b.n {
		for j := range 2 {
			handler := b.handlers()[(i+j)%2] // neither is always first
			took, err := sample(handler)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", handler, err)
			}
			samples[handler] = append(samples[handler], took)
		}
	}
	return samples, nil
}

// parallel is how many pods start at once.
const parallel = 20

// benchParallel: many at once; a sample is one pod's time.
func benchParallel(ctx context.Context, b *bench) error {
	return b.atOnce(ctx, parallel, 0.6)
}

func (b *bench) atOnce(ctx context.Context, count int, target float64) error {
	samples := map[string][]time.Duration{}
	for range max(1, 2*b.n/count) {
		for _, handler := range b.handlers() {
			pods, took, err := b.startAll(ctx, handler, count)
			err = errors.Join(err, b.removeAll(ctx, pods))
			if err != nil {
				return fmt.Errorf("%s: %w", handler, err)
			}
			samples[handler] = append(samples[handler], took...)
		}
	}
	b.report.durations(b.title("start, %d in parallel", count), samples[b.ours], samples[bed.Stock], target)
	return nil
}

// startAll starts n pods at once. It returns those that it started, also on
// error.
func (b *bench) startAll(ctx context.Context, handler string, n int) ([]*pod, []time.Duration, error) {
	pods, took := make([]*pod, n), make([]time.Duration, n)
	var g errgroup.Group
	for i := range n {
		g.Go(func() (err error) {
			pods[i], took[i], err = b.start(ctx, shape{handler: handler})
			return err
		})
	}
	err := g.Wait()
	return pods, took, err
}

func (b *bench) removeAll(ctx context.Context, pods []*pod) error {
	var g errgroup.Group
	g.SetLimit(8)
	for _, p := range pods {
		if p != nil {
			g.Go(func() error { return b.remove(ctx, p) })
		}
	}
	return g.Wait()
}

// benchExec: ExecSync of a command that does nothing.
func benchExec(ctx context.Context, b *bench) error {
	pods := map[string]*pod{}
	for _, handler := range b.handlers() {
		p, _, err := b.start(ctx, shape{handler: handler})
		if err != nil {
			return err
		}
		pods[handler] = p
	}
	samples, err := b.inTurn(func(handler string) (time.Duration, error) {
		begin := time.Now()
		r, err := b.Runtime.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: pods[handler].container, Cmd: []string{"true"}})
		if err == nil && r.ExitCode != 0 {
			err = fmt.Errorf("exit code %d: %s", r.ExitCode, r.Stderr)
		}
		return time.Since(begin), err
	})
	if err != nil {
		return err
	}
	b.report.durations(b.title("exec"), samples[b.ours], samples[bed.Stock], 0.5)
	return nil
}

// dense is how many pods run while one more starts.
const dense = 200

// benchDense: does a start take longer on a full node? Each handler has a
// daemon of its own; its pods are all of its kind.
func benchDense(ctx context.Context, b *bench) error {
	empty, full := map[string]*starts{}, map[string]*starts{}
	for _, handler := range b.handlers() {
		err := b.fresh(ctx, func() (err error) {
			empty[handler], full[handler], err = b.fill(ctx, handler)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", handler, err)
		}
	}
	b.report.starts(fmt.Sprintf("start beside %d pods", dense), full[b.ours], full[bed.Stock], 0.6)
	growth := func(handler string) []float64 {
		return []float64{full[handler].median() / empty[handler].median()}
	}
	b.report.compare(fmt.Sprintf("- against none, %d pods slow it by", dense), "x", growth(b.ours), growth(bed.Stock), 0)
	return nil
}

// fill starts pods one after the other on an empty node and on a full one.
func (b *bench) fill(ctx context.Context, handler string) (empty, full *starts, err error) {
	if empty, err = b.serial(ctx, handler); err != nil {
		return nil, nil, err
	}
	var pods []*pod
	for range dense / parallel {
		more, _, err := b.startAll(ctx, handler, parallel)
		if err != nil {
			return nil, nil, err
		}
		pods = append(pods, more...)
	}
	if full, err = b.serial(ctx, handler); err != nil {
		return nil, nil, err
	}
	return empty, full, b.removeAll(ctx, pods)
}

func (b *bench) serial(ctx context.Context, handler string) (*starts, error) {
	samples := &starts{}
	for range b.n {
		p, took, err := b.start(ctx, shape{handler: handler})
		if err != nil {
			return nil, err
		}
		samples.add(p, took)
		if err := b.remove(ctx, p); err != nil {
			return nil, err
		}
	}
	return samples, nil
}
