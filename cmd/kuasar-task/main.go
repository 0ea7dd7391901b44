// kuasar-task is the agent: one worker for all pods of a host, and the first
// process of every container it starts.
//
//	kuasar-task serve --dir DIR   the worker
//	kuasar-task init              a container's first process, for libcontainer only
//	kuasar-task pause             the first process of a shared pid namespace
//	kuasar-task wasm …            a Wasm container, or the compiler of one
//	kuasar-task failpoints        lists where a test can make it die
//	kuasar-task --version
//
// Built with the tag guest it is PID 1 of a virtual machine instead of a worker,
// and leaves out what only a worker needs.
package main

import (
	"fmt"
	"os"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	_ "github.com/containerd-kuasar/containerd-kuasar/task/child"
	_ "github.com/containerd-kuasar/containerd-kuasar/task/pause"
)

// version is set by the linker.
var version = "0.0.0+unknown"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "kuasar-task: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if role := roleOf(args); role != nil {
		return role()
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	switch args[0] {
	case "failpoints":
		for _, name := range failpoint.Names() {
			fmt.Println(name)
		}
	case "--version", "-v", "version":
		fmt.Println("kuasar-task", version)
	case "--help", "-h", "help":
		fmt.Print(usage)
	default:
		return fmt.Errorf("unknown command %q\n%s", args[0], usage)
	}
	return nil
}
