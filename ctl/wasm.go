package ctl

import (
	"context"
	"slices"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/engine"
	"github.com/containerd-kuasar/containerd-kuasar/wasm"
)

// wasm is what Wasm pods need. An engine that pods get by default must be there;
// others are missed by those who choose them.
func (n *Node) wasm(ctx context.Context, h handler) []Part {
	o, err := wasm.Parse(h.options)
	all := append(n.host(ctx), seccomp(), landlock())
	all = append(all, bad(err)...)
	programs := wasm.Programs{Wasmtime: n.text(pluginWasm, "wasmtime"), WasmEdge: n.text(pluginWasm, "wasmedge")}
	for _, name := range engine.Names {
		if h.name != "" && name != o.Engine && !slices.Contains(o.Engines, name) {
			continue
		}
		path, err := programs.Find(name)
		detail := "in kuasar-task"
		if path != "" {
			detail = about(ctx, path)
		}
		p := found(name, detail, err)
		if name != o.Engine {
			p = p.limit("pods cannot choose it")
		}
		all = append(all, p)
	}
	return all
}
