package guest

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// moduleSet are modules and what they need.
type moduleSet struct {
	files []string // each once
	order string   // as package task/guest reads it
}

// modules finds those that are wanted, by name, in a kernel's directory. What
// is built into the kernel is left out. The package has no list of what needs
// what: that is made when it is installed. So it comes from the modules
// themselves.
func modules(dir string, wanted []string) (moduleSet, error) {
	l := library{files: map[string]string{}, builtin: map[string]bool{}}
	if err := l.read(dir); err != nil {
		return moduleSet{}, err
	}
	var set moduleSet
	for _, name := range wanted {
		files, err := l.closure(name, nil)
		if err != nil {
			return moduleSet{}, err
		}
		if len(files) == 0 {
			continue
		}
		for i, f := range files {
			if !slices.Contains(set.files, f) {
				set.files = append(set.files, f)
			}
			files[i] = filepath.Base(f)
		}
		set.order += strings.Join(files, " ") + "\n"
	}
	return set, nil
}

// library is a kernel's modules by name.
type library struct {
	files   map[string]string
	builtin map[string]bool
}

func (l library) read(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return err
	}
	for _, path := range strings.Fields(string(b)) {
		l.builtin[moduleName(path)] = true
	}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.Contains(d.Name(), ".ko") {
			l.files[moduleName(path)] = path
		}
		return err
	})
}

// moduleName is how a module calls itself: its file may have dashes.
func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// closure appends the file of a module to files, and before it those that it
// needs.
func (l library) closure(name string, files []string) ([]string, error) {
	path := l.files[name]
	switch {
	case path == "" && l.builtin[name]:
		return files, nil
	case path == "":
		return nil, fmt.Errorf("the kernel has no module %s, nor is it built in", name)
	case slices.Contains(files, path):
		return files, nil
	}
	needs, err := dependencies(path)
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", name, err)
	}
	for _, n := range needs {
		if files, err = l.closure(n, files); err != nil {
			return nil, fmt.Errorf("module %s: %w", name, err)
		}
	}
	return append(files, path), nil
}

// dependencies are the names of the modules that a module says it needs.
func dependencies(path string) ([]string, error) {
	lists, err := about(path, "depends")
	if err != nil || len(lists) == 0 || lists[0] == "" {
		return nil, err
	}
	return strings.Split(strings.ReplaceAll(lists[0], "-", "_"), ","), nil
}

// about returns what a module says of something.
func about(path, key string) ([]string, error) {
	f, err := elf.Open(path)
	if bad := new(elf.FormatError); errors.As(err, &bad) {
		return nil, fmt.Errorf("%s: %w: compressed modules are not supported: use a kernel package without", path, err)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("%s is no kernel module: it has no .modinfo", path)
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	var all []string
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if text, ok := bytes.CutPrefix(field, []byte(key+"=")); ok {
			all = append(all, string(text))
		}
	}
	return all, nil
}
