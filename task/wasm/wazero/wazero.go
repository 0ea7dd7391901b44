// Package wazero runs modules with wazero, which is Go and needs nothing
// installed. It decodes and checks the whole module in each process.
package wazero

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/runner"
)

// source is the module itself in a directory of compiled ones: wazero wants it
// again. codes is where it keeps what it made of it.
const (
	source = "module.wasm"
	codes  = "code"
)

// page is WebAssembly's, in bytes.
const page = 64 << 10

// Compile reads a module and writes what Load takes into a directory.
func Compile(path, dir string) error {
	ctx := context.Background()
	raw, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read module: %w", err)
	}
	r, cache, err := runtime(ctx, dir, 0)
	if err != nil {
		return err
	}
	defer cache.Close(ctx)
	if _, err := r.CompileModule(ctx, raw); err != nil {
		return refused(err)
	}
	if err := write(r, dir); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, source), raw, 0o600)
}

// runtime makes one whose compiler uses a directory.
func runtime(ctx context.Context, dir string, memory int64) (wazero.Runtime, wazero.CompilationCache, error) {
	cache, err := wazero.NewCompilationCacheWithDir(filepath.Join(dir, codes))
	if err != nil {
		return nil, nil, fmt.Errorf("open compiled module: %w", err)
	}
	config := wazero.NewRuntimeConfigCompiler().WithCompilationCache(cache)
	if memory > 0 {
		// Memory of that size from the start: to grow it is then no copy, which
		// would take it twice. The kernel gives none that is not used.
		config = config.WithMemoryLimitPages(uint32(min(max(memory/page, 1), 1<<16))).WithMemoryCapacityFromMax(true)
	}
	return wazero.NewRuntimeWithConfig(ctx, config), cache, nil
}

// module is a module of WASI preview 1 that can run.
type module struct {
	runtime  wazero.Runtime
	compiled wazero.CompiledModule

	listeners context.Context // has them, as wazero takes them
}

// Load opens what Compile has written. It refuses a module that is no program,
// or that needs what the engine has not.
func Load(dir string, p runner.Process) (runner.Module, error) {
	ctx := context.Background()
	raw, err := mapped(filepath.Join(dir, source))
	if err != nil {
		return nil, fmt.Errorf("open compiled module: %w", err)
	}
	r, _, err := runtime(ctx, dir, p.Memory)
	if err != nil {
		return nil, err
	}
	listeners, err := listening(ctx, p.Env)
	if err != nil {
		return nil, err
	}
	m := &module{runtime: r, listeners: listeners}
	wasi, err := wasi_snapshot_preview1.NewBuilder(r).Compile(ctx)
	if err == nil {
		_, err = r.InstantiateModule(ctx, wasi, wazero.NewModuleConfig())
	}
	if err != nil {
		return nil, fmt.Errorf("offer WASI: %w", err)
	}
	if m.compiled, err = r.CompileModule(ctx, raw); err != nil {
		return nil, refused(err)
	}
	if err := m.check(wasi.ExportedFunctions()); err != nil {
		return nil, err
	}
	return m, share(r, dir)
}

// check finds what instantiation would, which is too late to refuse a module.
func (m *module) check(wasi map[string]api.FunctionDefinition) error {
	var missing []string
	for _, f := range m.compiled.ImportedFunctions() {
		from, name, _ := f.Import()
		if from != wasi_snapshot_preview1.ModuleName || wasi[name] == nil {
			missing = append(missing, from+"."+name)
		}
	}
	for _, f := range m.compiled.ImportedMemories() {
		from, name, _ := f.Import()
		missing = append(missing, from+"."+name)
	}
	if len(missing) > 0 {
		return fmt.Errorf("module needs %s, which wazero has not", strings.Join(missing, ", "))
	}
	if _, ok := m.compiled.ExportedFunctions()["_start"]; !ok {
		return errors.New("module has no function _start: it is no program")
	}
	return nil
}

// Run implements runner.Module.
func (m *module) Run(p runner.Process) (int, error) {
	// A fifth of what was read and decoded is not needed any more; nobody has to
	// wait for its return.
	go debug.FreeOSMemory()
	ctx := experimental.WithMemoryAllocator(m.listeners, experimental.MemoryAllocatorFunc(allocate))
	_, err := m.runtime.InstantiateModule(ctx, m.compiled, config(p))
	var exit *sys.ExitError
	switch {
	case errors.As(err, &exit):
		return int(exit.ExitCode()), nil
	case err != nil:
		return 0, refused(err)
	}
	return 0, nil
}

func config(p runner.Process) wazero.ModuleConfig {
	files := wazero.NewFSConfig()
	for _, d := range p.Dirs {
		if d.ReadOnly {
			files = files.WithReadOnlyDirMount(d.Host, d.Guest)
		} else {
			files = files.WithDirMount(d.Host, d.Guest)
		}
	}
	c := wazero.NewModuleConfig().WithArgs(p.Args...).WithFSConfig(files).
		WithStdin(os.Stdin).WithStdout(os.Stdout).WithStderr(os.Stderr).
		WithSysNanosleep().WithSysNanotime().WithSysWalltime().WithRandSource(random{})
	for _, e := range p.Env {
		key, value, _ := strings.Cut(e, "=")
		c = c.WithEnv(key, value)
	}
	return c
}

// refused is an error of wazero's without the backtrace that follows its first
// line.
func refused(err error) error {
	text, _, _ := strings.Cut(err.Error(), "\nwasm stack trace:")
	return errors.New(text)
}
