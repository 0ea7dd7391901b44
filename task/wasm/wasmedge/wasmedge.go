// Package wasmedge runs modules with WasmEdge: the program of that name that
// the distribution has, which is executed.
//
// Its compiler makes shared libraries, which are mapped. It uses LLVM, which
// takes its time: modules of some size are compiled without optimization.
package wasmedge

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
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

// Find returns the program's path and version.
func Find(ctx context.Context) (path, version string, err error) {
	if path, err = exec.LookPath(Program); err != nil {
		return "", "", fmt.Errorf("%w: install WasmEdge", err)
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "", "", fmt.Errorf("ask %s for its version: %w", path, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	if _, version, _ = strings.Cut(line, " version "); version == "" {
		return "", "", fmt.Errorf("ask %s for its version: it says %.100q", path, line)
	}
	return path, version, nil
}

// CompileArgs are the arguments to compile a module of some size.
func CompileArgs(module string, size int64, code string) []string {
	level := "0"
	if size <= optimized {
		level = "2"
	}
	return []string{"compile", "--optimize", level, "--", module, code}
}

// Process is what a module gets.
type Process struct {
	Args   []string // but the first, which is the module's own name
	Env    []string // as "KEY=value"
	Root   string   // the directory that it sees as its root
	Memory int64    // most that its linear memory may have, in bytes; 0 is 4 GiB
}

// RunArgs are the arguments to run a module that was compiled.
func RunArgs(code string, p Process) []string {
	args := []string{"--dir", "/:" + p.Root}
	for _, e := range p.Env {
		args = append(args, "--env", e)
	}
	if p.Memory > 0 {
		args = append(args, "--memory-page-limit", strconv.FormatInt(max(p.Memory/page, 1), 10))
	}
	return append(append(args, "--", code), p.Args...)
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
