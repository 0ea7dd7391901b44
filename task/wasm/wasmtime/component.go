package wasmtime

// #cgo LDFLAGS: -Wl,--unresolved-symbols=ignore-all
// #include <stdlib.h>
// #include "component.h"
import "C" // what component.c calls is in the library that wasmtime-go links

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"unsafe"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/runner"
)

// compileComponent is Compile for a component.
func compileComponent(raw []byte, dir string) error {
	var code *C.char
	var length C.size_t
	if text := C.component_compile(unsafe.Pointer(&raw[0]), C.size_t(len(raw)), maxStack, &code, &length); text != nil {
		return failed(text)
	}
	defer C.component_free(code, length)
	return os.WriteFile(filepath.Join(dir, componentCode), unsafe.Slice((*byte)(unsafe.Pointer(code)), length), 0o600)
}

// component is a component that can run.
type component struct{ c *C.struct_component }

func loadComponent(path string) (*component, error) {
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	var c *C.struct_component
	if text := C.component_load(name, maxStack, &c); text != nil {
		return nil, failed(text)
	}
	return &component{c}, nil
}

// Run implements runner.Module.
func (c *component) Run(p runner.Process) (int, error) {
	var pin runtime.Pinner // what C finds of Go's memory is the arrays of strings
	defer pin.Unpin()
	var keys, values []string
	for _, e := range p.Env {
		key, value, _ := strings.Cut(e, "=")
		keys, values = append(keys, key), append(values, value)
	}
	dirs := make([]C.struct_directory, len(p.Dirs))
	for i, d := range p.Dirs {
		dirs[i] = C.struct_directory{host: C.CString(d.Host), guest: C.CString(d.Guest)}
		if d.ReadOnly {
			dirs[i].read_only = 1
		}
	}
	process := C.struct_process{
		argc: C.size_t(len(p.Args)), argv: vector(&pin, p.Args),
		envc: C.size_t(len(keys)), keys: vector(&pin, keys), values: vector(&pin, values),
		dirc: C.size_t(len(dirs)), memory: C.int64_t(p.Memory),
	}
	if len(dirs) > 0 {
		pin.Pin(&dirs[0])
		process.dirs = &dirs[0]
	}
	var status C.int
	if text := C.component_run(c.c, &process, &status); text != nil {
		return 0, failed(text)
	}
	return int(status), nil
}

// vector copies strings for C. They are for one run, which ends the process.
func vector(pin *runtime.Pinner, of []string) **C.char {
	if len(of) == 0 {
		return nil
	}
	pointers := make([]*C.char, len(of))
	for i, s := range of {
		pointers[i] = C.CString(s)
	}
	pin.Pin(&pointers[0])
	return &pointers[0]
}

// failed makes an error of a string of C's.
func failed(text *C.char) error {
	defer C.free(unsafe.Pointer(text))
	return errors.New(brief(C.GoString(text)))
}
