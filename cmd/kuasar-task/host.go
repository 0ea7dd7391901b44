//go:build !guest

package main

import "github.com/containerd-kuasar/containerd-kuasar/task/wasm"

const usage = `usage: kuasar-task serve --dir DIR
       kuasar-task failpoints
       kuasar-task --version

serve runs the worker of a host: it holds the containers of all pods. DIR is a
private directory on the state file system; containerd-kuasar starts it there.
`

// roleOf returns what args make of this process, nil if nothing in particular.
func roleOf(args []string) func() error {
	if len(args) == 0 {
		return nil
	}
	switch args[0] {
	case "serve":
		return func() error { return serve(args[1:]) }
	case wasm.Role:
		return func() error { return module(args[1:]) }
	}
	return nil
}
