package wasm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/cell"
	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/engine"
	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/wasmedge"
)

// command is a program of a cell.
type command struct {
	path  string
	args  []string
	binds []cell.Bind

	chroot bool                // a runner makes the container's root its own
	keep   bool                // the compiled module needs the source
	brief  func(string) string // one line of what a compiler said
}

// Roles of kuasar-task, after Role. Those of kuasar-wasmtime have the same
// names.
const (
	Role    = "wasm"
	Compile = "compile" // source directory
	Run     = "run"
	Execute = "exec" // wasmedge, whose path follows
)

// inside is where a cell has a program of ours.
const inside = "/kuasar-wasm"

func ours(path string, args ...string) command {
	return command{
		path: inside, args: append([]string{filepath.Base(path)}, args...), binds: []cell.Bind{{Source: path, Target: inside}},
		chroot: true, brief: func(s string) string { return strings.ReplaceAll(s, "\n", ": ") },
	}
}

// compiler of a module with a size in bytes.
func (r *Runtime) compiler(o engine.Options, size int64) (command, error) {
	module := filepath.Join(codeDir, source)
	switch o.Engine {
	case engine.Wasmtime:
		return ours(o.Program, Compile, module, codeDir), nil
	case engine.WasmEdge:
		args := wasmedge.CompileArgs(module, size, filepath.Join(codeDir, wasmedge.Code))
		return command{path: o.Program, args: append([]string{wasmedge.Program}, args...), binds: host(o.Program), brief: wasmedge.Brief}, nil
	}
	self, err := r.self()
	c := ours(self, Role, Compile, module, codeDir)
	c.keep = true
	return c, err
}

// runner runs a compiled module.
func (r *Runtime) runner(o engine.Options) (command, error) {
	if o.Engine == engine.Wasmtime {
		return ours(o.Program, Run), nil
	}
	self, err := r.self()
	if err != nil || o.Engine == engine.Wazero {
		return ours(self, Role, Run), err
	}
	c := ours(self, Role, Execute, o.Program)
	c.binds = append(c.binds, host(o.Program)...)
	c.chroot = false
	return c, nil
}

// host gives a program of the distribution what it is linked with.
func host(program string) []cell.Bind {
	binds := []cell.Bind{}
	for _, dir := range []string{"/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache"} {
		if _, err := os.Stat(dir); err == nil {
			binds = append(binds, cell.Bind{Source: dir, Target: dir})
		}
	}
	dir := filepath.Dir(program)
	if !strings.HasPrefix(dir+"/", "/usr/") && dir != "/bin" {
		binds = append(binds, cell.Bind{Source: dir, Target: dir})
	}
	return binds
}

// version of an engine as the cache tells compilations apart: another program
// may compile to something else.
func (r *Runtime) version(o engine.Options) (string, error) {
	if o.Engine == engine.Wazero {
		return r.cfg.Version, nil
	}
	info, err := os.Stat(o.Program)
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%s is missing: install it, or choose another engine: %w", o.Program, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return "", err
	}
	st := info.Sys().(*syscall.Stat_t)
	return fmt.Sprint(st.Dev, st.Ino, st.Size, st.Mtim.Nano()), nil
}
