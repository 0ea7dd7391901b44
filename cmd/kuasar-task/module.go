//go:build !guest

package main

import (
	"fmt"
	"os"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm"
	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/runner"
	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/wasmedge"
	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/wazero"
)

// module is what the worker executes this program for in a cell.
func module(args []string) error {
	switch {
	case len(args) == 3 && args[0] == wasm.Compile:
		return wazero.Compile(args[1], args[2])
	case len(args) == 1 && args[0] == wasm.Run:
		os.Exit(runner.Main(wazero.Load))
	case len(args) == 2 && args[0] == wasm.Execute:
		os.Exit(runner.Main(wasmedge.Load(args[1])))
	}
	return fmt.Errorf("role %q is the worker's to call: %q", wasm.Role, args)
}
