// Package wasmtime runs modules with Wasmtime, which is linked into the program
// that imports this. Compiled modules are ELF files that are mapped, so that
// all processes of a module share its code.
package wasmtime

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/bytecodealliance/wasmtime-go/v40"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/runner"
)

// Version is of Wasmtime and of how it is configured here: what one compiled,
// only the same loads.
const Version = "40.0.0"

// A compiled module in its directory, or a component, as it was one or the other.
const (
	moduleCode    = "module.cwasm"
	componentCode = "component.cwasm"
)

func configure() *wasmtime.Engine {
	config := wasmtime.NewConfig()
	config.SetMaxWasmStack(maxStack)
	return wasmtime.NewEngineWithConfig(config)
}

// maxStack is what a module may have on the engine's stack, in bytes. It is
// half of what Go gives its threads in C, where the module is called from.
const maxStack = 4 << 20

// Compile reads a module and writes what Load takes into a directory.
func Compile(path, dir string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read module: %w", err)
	}
	// The second half of the version tells the layer: 1 is a component's.
	if bytes.HasPrefix(raw, []byte("\x00asm")) && len(raw) >= 8 && raw[6] == 1 {
		return compileComponent(raw, dir)
	}
	m, err := wasmtime.NewModule(configure(), raw)
	if err != nil {
		return errors.New(brief(err.Error()))
	}
	serialized, err := m.Serialize()
	if err != nil {
		return errors.New(brief(err.Error()))
	}
	return os.WriteFile(filepath.Join(dir, moduleCode), serialized, 0o600)
}

// Load opens what Compile has written. The directory is not needed any more
// afterwards. It refuses a module that is no program, or that needs what the
// engine has not.
func Load(dir string, _ runner.Process) (runner.Module, error) {
	if path := filepath.Join(dir, componentCode); exists(path) {
		return loadComponent(path)
	}
	m := &module{engine: configure()}
	var err error
	if m.module, err = wasmtime.NewModuleDeserializeFile(m.engine, filepath.Join(dir, moduleCode)); err != nil {
		return nil, errors.New(brief(err.Error()))
	}
	m.linker = wasmtime.NewLinker(m.engine)
	if err := m.linker.DefineWasi(); err != nil {
		return nil, errors.New(brief(err.Error()))
	}
	// Wasmtime's own takes no status above 125. The module's end is that of this
	// process.
	m.linker.AllowShadowing(true)
	if err := m.linker.FuncWrap("wasi_snapshot_preview1", "proc_exit", func(status int32) { os.Exit(int(status)) }); err != nil {
		return nil, errors.New(brief(err.Error()))
	}
	return m, m.check()
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// module is a module of WASI preview 1.
type module struct {
	engine *wasmtime.Engine
	module *wasmtime.Module
	linker *wasmtime.Linker
}

// check finds what instantiation would, which is too late to refuse a module.
func (m *module) check() error {
	store := wasmtime.NewStore(m.engine)
	defer store.Close()
	var missing []string
	for _, i := range m.module.Imports() {
		name := ""
		if i.Name() != nil {
			name = *i.Name()
		}
		if m.linker.Get(store, i.Module(), name) == nil {
			missing = append(missing, i.Module()+"."+name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("module needs %s, which wasmtime has not", strings.Join(missing, ", "))
	}
	for _, e := range m.module.Exports() {
		if e.Name() == "_start" && e.Type().FuncType() != nil {
			return nil
		}
	}
	return errors.New("module has no function _start: it is no program")
}

// Run implements runner.Module.
func (m *module) Run(p runner.Process) (int, error) {
	wasi, err := config(p)
	if err != nil {
		return 0, err
	}
	store := wasmtime.NewStore(m.engine)
	if p.Memory > 0 {
		store.Limiter(p.Memory, -1, -1, -1, -1)
	}
	store.SetWasi(wasi)
	instance, err := m.linker.Instantiate(store, m.module)
	if err != nil {
		return 0, errors.New(brief(err.Error()))
	}
	_, err = instance.GetFunc(store, "_start").Call(store)
	var exit *wasmtime.Error
	if errors.As(err, &exit) {
		if status, ok := exit.ExitStatus(); ok {
			return int(status), nil
		}
	}
	if err != nil {
		return 0, errors.New(brief(err.Error()))
	}
	return 0, nil
}

func config(p runner.Process) (*wasmtime.WasiConfig, error) {
	wasi := wasmtime.NewWasiConfig()
	wasi.SetArgv(p.Args)
	var keys, values []string
	for _, e := range p.Env {
		key, value, _ := strings.Cut(e, "=")
		keys, values = append(keys, key), append(values, value)
	}
	wasi.SetEnv(keys, values)
	wasi.InheritStdin()
	wasi.InheritStdout()
	wasi.InheritStderr()
	for _, d := range p.Dirs {
		dirs, files := wasmtime.DIR_READ|wasmtime.DIR_WRITE, wasmtime.FILE_READ|wasmtime.FILE_WRITE
		if d.ReadOnly {
			dirs, files = wasmtime.DIR_READ, wasmtime.FILE_READ
		}
		if err := wasi.PreopenDir(d.Host, d.Guest, dirs, files); err != nil {
			return nil, fmt.Errorf("open %s for the module: %w", d.Host, err)
		}
	}
	return wasi, nil
}
