// bench compares our sandboxers with containerd's stock runc handler: all
// in one daemon, in turn, through one CRI client, so that noise hits both. It
// prints medians and ratios, and writes them as JSON and as a picture. And it
// traces what the time of starts goes into, for another picture.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// benchmarks in the order in which they run. Each compares pods of a handler of
// ours with those of bed.Stock and reports lines of its own.
var benchmarks = []struct {
	name, ours string
	run        func(context.Context, *bench) error
}{
	{"start", bed.Runc, benchStart},
	{"parallel", bed.Runc, benchParallel},
	{"exec", bed.Runc, benchExec},
	{"stdio", bed.Runc, benchOutput},
	{"dense", bed.Runc, benchDense},
	{"memory", bed.Runc, benchMemory},
	{"wasm-start", bed.Wasm, wasmStart},
	{"wasm-memory", bed.Wasm, wasmMemory},
	{"wasm-dense", bed.Wasm, wasmDense},
	{"wasm-compute", bed.Wasm, wasmCompute},
	{"vm-start", bed.VMM, vmStart},
	{"vm-template", bed.VMMClone, vmTemplate},
	{"vm-pool", bed.VMMPool, vmPool},
	{"vm-parallel", bed.VMM, vmParallel},
	{"vm-exec", bed.VMM, benchExec},
	{"vm-stdio", bed.VMM, benchOutput},
	{"vm-files", bed.VMM, vmFiles},
	{"vm-memory", bed.VMM, vmMemory},
	{"phases", bed.VMM, phases},
}

// bench is one run of the program.
type bench struct {
	*bed.Bed
	ours   string // handler that is compared with bed.Stock
	n      int    // samples a side
	report report
}

func main() {
	if err := bed.Isolate(); err != nil {
		fail(err)
	}
	n := flag.Int("n", 30, "samples a side")
	out := flag.String("out", "docs", "directory for bench.json, bench.svg and phases.svg")
	only := flag.String("run", "", "benchmarks to run, comma separated; all if empty")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *n, *out, *only); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "bench:", err)
	os.Exit(1)
}

func run(ctx context.Context, n int, out, only string) error {
	b := &bench{n: n}
	for _, benchmark := range benchmarks {
		if only != "" && !strings.Contains(","+only+",", ","+benchmark.name+",") {
			continue
		}
		if lack := bed.LackOfVMM(); isMachine(benchmark.ours) && lack != "" {
			fmt.Printf("== %s is left out: there is no %s\n", benchmark.name, lack)
			continue
		}
		fmt.Printf("== %s\n", benchmark.name)
		b.ours = benchmark.ours
		if err := b.fresh(ctx, func() error { return benchmark.run(ctx, b) }); err != nil {
			return fmt.Errorf("%s: %w", benchmark.name, err)
		}
	}
	return b.report.write(out)
}

// fresh runs f with a daemon of its own, so that one benchmark leaves nothing
// to the next.
func (b *bench) fresh(ctx context.Context, f func() error) (err error) {
	// What a production daemon logs, not what a test needs.
	b.Bed, err = bed.New(bed.Options{Level: "info"})
	if err != nil {
		return err
	}
	defer func() {
		if e := b.Bed.Close(); err == nil {
			err = e
		}
	}()
	if err := b.Start(ctx); err != nil {
		return err
	}
	if err := b.warm(ctx); err != nil {
		return err
	}
	return f()
}
