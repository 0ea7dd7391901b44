package wasmtime

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bytecodealliance/wasmtime-go/v40"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/runner"
)

// role has the test's program run a module: a module gets the stdio of its
// process.
const role = "WASMTIME_TEST_RUN"

func TestMain(m *testing.M) {
	if dir := os.Getenv(role); dir != "" {
		os.Exit(child(dir))
	}
	os.Exit(m.Run())
}

func child(dir string) int {
	var p runner.Process
	raw, err := os.ReadFile(filepath.Join(dir, "process.json"))
	if err == nil {
		err = json.Unmarshal(raw, &p)
	}
	var m runner.Module
	if err == nil {
		m, err = Load(dir, runner.Process{})
	}
	status := 0
	if err == nil {
		status, err = m.Run(p)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 134
	}
	return status
}

// compile compiles a module's text.
func compile(t *testing.T, text string) string {
	t.Helper()
	raw, err := wasmtime.Wat2Wasm(text)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "module.wasm")
	if err := errors.Join(os.WriteFile(path, raw, 0o600), Compile(path, dir)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func run(t *testing.T, dir string, p runner.Process) (status int, stdout, stderr string) {
	t.Helper()
	raw, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "process.json"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = []string{role + "=" + dir}
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// program is the text of a module with a _start, and what it imports.
func program(start string) string {
	return `(module
		(import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
		(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
		(import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
		(import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ (param i32 i32) (result i32)))
		(import "wasi_snapshot_preview1" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
		(memory (export "memory") 1)
		(data (i32.const 16) "hello\n")
		(func $deeper (param i32)
			(call $deeper (i32.add (local.get 0) (i32.const 1)))
			(i32.store (i32.const 0) (local.get 0)))
		(func (export "_start") ` + start + `))`
}

// host is the text of a component whose run returns a result: 0 is ok.
func host(result string) string {
	return `(component
		(core module $m (func (export "run") (result i32) (i32.const ` + result + `)))
		(core instance $m (instantiate $m))
		(func $run (result (result)) (canon lift (core func $m "run")))
		(instance $cli (export "run" (func $run)))
		(export "wasi:cli/run@0.2.3" (instance $cli)))`
}

func TestRun(t *testing.T) {
	process := runner.Process{Args: []string{"a", "b", "c"}, Env: []string{"A=1", "B=2"}, Memory: 1 << 20}
	process.Dirs = []runner.Dir{{Host: t.TempDir(), Guest: "/"}}
	for name, test := range map[string]struct {
		text           string
		status         int
		stdout, stderr string
	}{
		"output": {program(`(i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (i32.const 6))
			(drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))`), 0, "hello\n", ""},
		"exit status":      {program(`(call $exit (i32.const 7))`), 7, "", ""},
		"high exit status": {program(`(call $exit (i32.const 255))`), 255, "", ""},
		"arguments":        {program(`(drop (call $args (i32.const 0) (i32.const 4))) (call $exit (i32.load (i32.const 0)))`), 3, "", ""},
		"environment":      {program(`(drop (call $environ (i32.const 0) (i32.const 4))) (call $exit (i32.load (i32.const 0)))`), 2, "", ""},
		"directory":        {program(`(call $exit (call $prestat (i32.const 3) (i32.const 0)))`), 0, "", ""},
		"no other":         {program(`(call $exit (call $prestat (i32.const 4) (i32.const 0)))`), 8, "", ""}, // EBADF
		"memory":           {program(`(call $exit (memory.grow (i32.const 15)))`), 1, "", ""},
		"too much memory":  {program(`(call $exit (i32.add (memory.grow (i32.const 16)) (i32.const 6)))`), 5, "", ""},
		"trap":             {program(`unreachable`), 134, "", "unreachable"},
		"full stack":       {program(`(call $deeper (i32.const 0))`), 134, "", "call stack exhausted"},
		"component":        {host("0"), 0, "", ""},
		"failed component": {host("1"), 1, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			status, stdout, stderr := run(t, compile(t, test.text), process)
			if status != test.status || stdout != test.stdout || !strings.Contains(stderr, test.stderr) || test.stderr == "" && stderr != "" {
				t.Errorf("exit status %d, stdout %q, stderr %q", status, stdout, stderr)
			}
			if strings.Count(stderr, "\n") > 1 {
				t.Errorf("more than a line: %q", stderr)
			}
		})
	}
}

func TestLoadRefuses(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"missing imports": {`(module (import "env" "one" (func)) (import "env" "two" (global i32)) (func (export "_start")))`, "env.one, env.two"},
		"no start":        {`(module (func (export "main")))`, "_start"},
		"other start":     {`(module (global (export "_start") i32 (i32.const 0)))`, "_start"},
		"no run":          {`(component)`, "wasi:cli/run"},
	} {
		if _, err := Load(compile(t, test.text), runner.Process{}); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, content := range map[string]string{"empty": "", "other": "\x7fELF something"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, moduleCode), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(dir, runner.Process{}); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	for name, content := range map[string]string{
		"empty": "", "text": "(module)", "half": "\x00asm\x01\x00\x00\x00\x01", "broken component": "\x00asm\x0d\x00\x01\x00\x01\x7f",
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "module.wasm")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Compile(path, dir); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
