// Package wasmedge runs modules with WasmEdge: the program of that name that
// the distribution has, which is executed.
//
// Its compiler makes shared libraries, which are mapped. It uses LLVM, which
// takes its time: modules of some size are compiled without optimization.
package wasmedge

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/runner"
)

// Program is the program's name.
const Program = "wasmedge"

// Code is the file that Compile makes.
const Code = "module.so"

// optimized is the largest module, in bytes, that is optimized. The compiler
// takes 20 s for a MB then, and 2 s otherwise, for code that takes three times
// as long.
const optimized = 256 << 10

// page is WebAssembly's, in bytes.
const page = 64 << 10

// CompileArgs are the arguments to compile a module of some size.
func CompileArgs(module string, size int64, code string) []string {
	level := "0"
	if size <= optimized {
		level = "2"
	}
	return []string{"compile", "--optimize", level, "--", module, code}
}

// Load makes a runner.Loader of the program at path: what it loads takes the
// place of the runner, which has checked nothing but that it is there.
func Load(path string) runner.Loader {
	return func(dir string, p runner.Process) (runner.Module, error) {
		code := filepath.Join(dir, Code)
		if _, err := os.Stat(code); err != nil {
			return nil, fmt.Errorf("open compiled module: %w", err)
		}
		return module{path, code}, nil
	}
}

type module struct{ program, code string }

// Run implements runner.Module. It returns only if it fails.
func (m module) Run(p runner.Process) (int, error) {
	err := unix.Exec(m.program, runArgs(m.code, p), nil)
	return 0, fmt.Errorf("execute %s: %w", m.program, err)
}

func runArgs(code string, p runner.Process) []string {
	args := []string{Program}
	for _, d := range p.Dirs {
		args = append(args, "--dir", d.Guest+":"+d.Host)
	}
	for _, e := range p.Env {
		args = append(args, "--env", e)
	}
	if p.Memory > 0 {
		args = append(args, "--memory-page-limit", strconv.FormatInt(min(max(p.Memory/page, 1), 1<<16), 10))
	}
	// The first is the module's own name.
	return append(append(args, "--", code), p.Args[1:]...)
}

// Brief makes one line of what the compiler wrote about a module that it
// refuses: its first error, without time and level.
func Brief(output string) string {
	for line := range strings.Lines(output) {
		if _, text, ok := strings.Cut(line, "[error]"); ok {
			return strings.TrimSpace(text)
		}
	}
	return strings.TrimSpace(strings.SplitN(output, "\n", 2)[0])
}
