package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// ModuleDir is where an initramfs has kernel modules. Each line of its file
// "order" names a module's file and, before it, those that it needs, all in the
// order in which they are to be loaded.
const ModuleDir = "/modules"

// Modules loads kernel modules, each once. Safe for concurrent use.
type Modules struct {
	needs  map[string][]string     // files by the module's name, the module's own last
	insert func(path string) error // makes the kernel load a file
	loads  map[string]func() error // by file; guarded by mu
	mu     sync.Mutex
	dir    string

	// aliases are names of a module's by which the kernel asks for it, which may
	// be patterns.
	aliases [][2]string

	// memory says that files are, which is given back when they are loaded.
	memory bool
}

// NewModules reads which ones there are. None is no error: a kernel may have
// all built in.
func NewModules(dir string) (*Modules, error) {
	m := &Modules{dir: dir, memory: true, needs: map[string][]string{}, insert: insert, loads: map[string]func() error{}}
	b, err := os.ReadFile(filepath.Join(dir, "order"))
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return nil, fmt.Errorf("kernel modules: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if files := strings.Fields(line); len(files) > 0 {
			name, _, _ := strings.Cut(files[len(files)-1], ".")
			m.needs[moduleName(name)] = files
		}
	}
	return m, nil
}

// moduleName is how a module calls itself: its file may have dashes.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// NewLibrary reads which ones there are in a directory that the host shares. Its
// file "aliases" has a line for each alias, and the module's name after it.
func NewLibrary(dir string) (*Modules, error) {
	m, err := NewModules(dir)
	if err != nil {
		return nil, err
	}
	m.memory = false
	b, err := os.ReadFile(filepath.Join(dir, "aliases"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("kernel modules: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if alias, name, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			m.aliases = append(m.aliases, [2]string{alias, name})
		}
	}
	return m, nil
}

// Request loads what the kernel asks for, by a module's name or alias. What there
// is not is no error: the kernel asks for many things.
func (m *Modules) Request(name string) error {
	if m.needs[moduleName(name)] != nil {
		return m.Load(moduleName(name))
	}
	for _, alias := range m.aliases {
		if ok, err := path.Match(alias[0], name); err != nil || !ok {
			continue
		}
		if err := m.Load(alias[1]); err != nil {
			return err
		}
	}
	return nil
}

// Load loads modules by name, and what they need before. One that there is not
// is taken for built in: what was wanted of it fails then.
func (m *Modules) Load(names ...string) error {
	for _, name := range names {
		for _, file := range m.needs[name] {
			if err := m.once(file)(); err != nil {
				return fmt.Errorf("load kernel module %s: %w", name, err)
			}
		}
	}
	return nil
}

// LoadAll loads every module.
func (m *Modules) LoadAll() error { return m.Load(slices.Sorted(maps.Keys(m.needs))...) }

func (m *Modules) once(file string) func() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	load := m.loads[file]
	if load == nil {
		path := filepath.Join(m.dir, file)
		load = sync.OnceValue(func() error { return m.load(path) })
		m.loads[file] = load
	}
	return load
}

func (m *Modules) load(path string) error {
	err := m.insert(path)
	if errors.Is(err, fs.ErrNotExist) { // who was PID 1 before loaded it
		return nil
	}
	if err != nil || !m.memory {
		return err
	}
	return os.Remove(path)
}

// compressed is MODULE_INIT_COMPRESSED_FILE of linux/module.h (Linux 5.17).
const compressed = 4

func insert(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if !strings.HasSuffix(path, ".ko") {
		flags = compressed
	}
	if err := unix.FinitModule(int(f.Fd()), "", flags); err != nil && err != unix.EEXIST {
		return &os.PathError{Op: "load", Path: path, Err: err}
	}
	return nil
}
