// demo runs pods of every sandboxer that this machine can run, through
// crictl, on a daemon of its own, and shows in a table what ran and how long
// each step took.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/engine"
	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
	"github.com/containerd-kuasar/containerd-kuasar/test/images"
)

// handler is a row of the table: one more sandboxer is one more row.
type handler struct {
	name string // of the runtime handler
	kind string // of isolation
	// missing names what this machine lacks to run it, empty if nothing.
	missing func() string
	// prepare, if not nil, comes before what is shown.
	prepare func(*bed.Bed, context.Context) error
	engine  string // of Wasm, empty for the handler's own
	work    workload
}

var handlers = []handler{
	{bed.Runc, "container, no shim, no pause", nothing, nil, "", linux},
	{bed.Stock, "container, stock containerd", program("runc"), nil, "", linux},
	{bed.VMM, "virtual machine, QEMU", bed.LackOfVMM, nil, "", linux},
	{bed.VMMClone, "virtual machine, cloned", bed.LackOfVMM, (*bed.Bed).Templated, "", linux},
	{bed.Wasm, "WebAssembly, wazero", nothing, nil, engine.Wazero, module},
	{bed.Wasm, "WebAssembly, Wasmtime", nothing, nil, engine.Wasmtime, module},
	{bed.Wasm, "WebAssembly, WasmEdge", wasmEdge, nil, engine.WasmEdge, module},
}

func main() {
	if os.Geteuid() != 0 {
		fail(errors.New("run as root: pods need namespaces, mounts and cgroups"))
	}
	if err := bed.Isolate(); err != nil {
		fail(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "demo:", err)
	os.Exit(1)
}

// run shows every handler. One that fails does not keep the others from
// being shown, but the demo fails.
func run(ctx context.Context) (err error) {
	began := time.Now()
	b, err := bed.New(bed.Options{Level: "info"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	fmt.Println("starting containerd-kuasar, with an image registry, a pod network and cgroups of its own")
	if err := b.Start(ctx); err != nil {
		return err
	}
	for _, image := range []string{images.Busybox, images.Web, images.Probe} {
		fmt.Println("pulling", image)
		if err := b.Pull(ctx, image); err != nil {
			return err
		}
	}
	var failed error
	rows := make([]row, 0, len(handlers))
	for _, h := range handlers {
		r := show(ctx, b, h)
		rows = append(rows, r)
		failed = errors.Join(failed, r.err)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	fmt.Println()
	if err := table(os.Stdout, rows); err != nil {
		return err
	}
	fmt.Printf("\n%s in all. Times are those of crictl, its own start of some 20 ms included; the first\nstart of a module on a node has it compiled.\n", time.Since(began).Round(100*time.Millisecond))
	return failed
}
