// kuasar-wasmtime runs modules with Wasmtime, which is linked into it. It is not
// for people: the worker executes it in a container's cell.
//
//	kuasar-wasmtime compile MODULE DIRECTORY
//	kuasar-wasmtime run
package main

import (
	"fmt"
	"os"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/runner"
	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/wasmtime"
)

func main() {
	switch args := os.Args[1:]; {
	case len(args) == 3 && args[0] == "compile":
		if err := wasmtime.Compile(args[1], args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case len(args) == 1 && args[0] == "run":
		os.Exit(runner.Main(wasmtime.Load))
	default:
		fmt.Fprintln(os.Stderr, "kuasar-wasmtime is executed by kuasar-task, as: kuasar-wasmtime compile MODULE DIRECTORY | run")
		os.Exit(2)
	}
}
