package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
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
}

// NewModules reads which ones there are. None is no error: a kernel may have
// all built in.
func NewModules(dir string) (*Modules, error) {
	m := &Modules{dir: dir, needs: map[string][]string{}, insert: insert, loads: map[string]func() error{}}
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
			m.needs[name] = files
		}
	}
	return m, nil
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
	if err != nil {
		return err
	}
	return os.Remove(path) // it was memory
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
