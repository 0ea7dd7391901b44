package main

import (
	"errors"

	"github.com/containerd-kuasar/containerd-kuasar/test/images"
)

// workload is what a handler's pod has.
type workload struct {
	image   string
	command []string // says something and runs on
	says    string
	exec    []string // another command in the container, and its answer
	answer  string
	web     string // image of a web server, empty for none
}

var linux = workload{
	image: images.Busybox, command: []string{"sh", "-c", "echo hello from $(hostname); exec sleep 100000"}, says: "hello from pod",
	exec: []string{"id"}, answer: "uid=0",
	web: images.Web,
}

// module has no web server: WASI preview 1 has no sockets to listen on.
var module = workload{
	image: images.Probe, command: []string{"/probe.wasm", "sleep"}, says: "sleeping",
	exec: []string{"/hello.wasm"}, answer: "hello",
}

// errNothing is of a step that a workload has nothing for.
var errNothing = errors.New("nothing to do")
