package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/containerd-kuasar/containerd-kuasar/ctl"
	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// A waterfall is what the time of a pod's start goes into: of the one that took
// the median time.
type waterfall struct {
	title string
	rows  []phase
}

// phase of a start: when it begins and how long it takes, in milliseconds.
type phase struct {
	name        string
	depth       int
	begin, took float64
}

// phases traces starts of pods with a container, as an operator would.
func phases(ctx context.Context, b *bench) error {
	node, err := ctl.Open(ctx, filepath.Join(b.Dir, "config.toml"))
	if err != nil {
		return err
	}
	if err := b.Templated(ctx); err != nil {
		return err
	}
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	ready, calls, ended := make(chan any), make(chan ctl.Call), make(chan error, 1)
	go func() {
		ended <- node.Watch(watching, ctl.Filter{}, func() { close(ready) }, func(c ctl.Call) error {
			select {
			case calls <- c:
				return nil
			case <-watching.Done():
				return watching.Err()
			}
		})
	}()
	select {
	case <-ready:
	case err := <-ended:
		return err
	}
	for _, pod := range []struct{ handler, title string }{
		{bed.Runc, "A pod of kuasar-runc"},
		{bed.VMM, "A pod in a virtual machine that boots"},
		{bed.VMMClone, "A pod in a virtual machine that is cloned"},
	} {
		var starts []waterfall
		for range max(3, b.n/3) {
			rows, err := b.traced(ctx, pod.handler, calls, ended)
			if err != nil {
				return fmt.Errorf("%s: %w", pod.handler, err)
			}
			starts = append(starts, waterfall{pod.title, rows})
		}
		slices.SortFunc(starts, func(a, b waterfall) int { return cmp.Compare(a.end(), b.end()) })
		b.report.phases(starts[len(starts)/2])
	}
	return nil
}

// traced starts a pod with a container, in a trace of its own, and removes it.
func (b *bench) traced(ctx context.Context, handler string, calls <-chan ctl.Call, ended <-chan error) ([]phase, error) {
	id := make([]byte, 24)
	if _, err := rand.Read(id); err != nil {
		return nil, err
	}
	trace := hex.EncodeToString(id[:16])
	p, _, err := b.start(metadata.AppendToOutgoingContext(ctx, "traceparent", fmt.Sprintf("00-%s-%x-01", trace, id[16:])), shape{handler: handler})
	if err != nil {
		return nil, err
	}
	var its []ctl.Call
	for len(its) < len(p.calls) {
		select {
		case c := <-calls:
			if c.Spans[0].Trace == trace {
				its = append(its, c)
			}
		case err := <-ended:
			return nil, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return rows(its), b.remove(ctx, p)
}

// network is containerd's span around the CNI plugins.
const network = "cni.setup_pod_network"

// rows are the calls' phases: ours, and the CNI plugins'.
func rows(calls []ctl.Call) []phase {
	slices.SortFunc(calls, func(a, b ctl.Call) int { return a.Spans[0].Begin.Compare(b.Spans[0].Begin) })
	begin := calls[0].Spans[0].Begin
	var all []phase
	for _, c := range calls {
		depth := map[string]int{} // of what is shown, by id, and of what stands for it
		for i, s := range c.Spans {
			above, below := depth[s.Parent]
			depth[s.ID] = above
			if i > 0 && !s.Ours && s.Name != network {
				continue
			}
			if below {
				depth[s.ID] = above + 1
			}
			t := milliseconds([]time.Duration{s.Begin.Sub(begin), s.Took()})
			all = append(all, phase{path.Base(s.Name), depth[s.ID], t[0], t[1]})
		}
	}
	return all
}

// end of the last phase, in milliseconds.
func (w waterfall) end() float64 {
	end := 0.0
	for _, r := range w.rows {
		end = max(end, r.begin+r.took)
	}
	return end
}

// String is a table as the specification has it.
func (w waterfall) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "| %s | begins | takes |\n|---|---|---|\n", w.title)
	for _, r := range w.rows {
		fmt.Fprintf(&b, "| %s%s | %.1f ms | %.1f ms |\n", strings.Repeat("– ", r.depth), r.name, r.begin, r.took)
	}
	return b.String()
}
