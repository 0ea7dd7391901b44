package main

import (
	"fmt"
	"os"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/wasmtime"
)

func main() {
	if os.Args[1] == "compile" {
		if err := wasmtime.Compile(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, "kuasar-wasmtime:", err)
			os.Exit(1)
		}
		return
	}
	m, err := wasmtime.Load(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "kuasar-wasmtime: load:", err)
		os.Exit(1)
	}
	status, err := m.Run(wasmtime.Process{Args: os.Args[1:], Env: os.Environ(), Memory: 64 << 20, Dirs: []wasmtime.Dir{{Host: "/tmp/w2", Guest: "/"}, {Host: "/etc", Guest: "/etc", ReadOnly: true}}})
	if err != nil {
		fmt.Fprintln(os.Stderr, "kuasar-wasmtime: run:", err)
		os.Exit(134)
	}
	os.Exit(status)
}
