package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// shelve puts the extras of a kernel into a directory, as package task/guest
// reads it: what was there is replaced. A guest that runs keeps what it had.
func shelve(kernel, to string) error {
	var names []string
	for _, e := range extras {
		more, err := below(filepath.Join(kernel, "kernel", e))
		if err != nil {
			return err
		}
		names = append(names, more...)
	}
	slices.Sort(names)
	set, err := modules(kernel, names)
	if err != nil {
		return err
	}
	fresh, err := os.MkdirTemp(filepath.Dir(to), "."+filepath.Base(to)+"-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(fresh)
	if err := set.write(fresh); err != nil {
		return err
	}
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	return os.Rename(fresh, to)
}

// below are the names of the modules in a directory, or of one. None is no error:
// they may be built in.
func below(path string) ([]string, error) {
	var names []string
	err := filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.Type().IsRegular() && strings.Contains(d.Name(), ".ko") {
			names = append(names, moduleName(path))
		}
		return err
	})
	return names, err
}

func (s moduleSet) write(dir string) error {
	var aliases strings.Builder
	for _, path := range s.files {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(path)), data, 0o644); err != nil {
			return err
		}
		of, err := about(path, "alias")
		if err != nil {
			return err
		}
		for _, alias := range of {
			fmt.Fprintln(&aliases, alias, moduleName(path))
		}
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "order"), []byte(s.order), 0o644),
		os.WriteFile(filepath.Join(dir, "aliases"), []byte(aliases.String()), 0o644),
		os.Chmod(dir, 0o755),
	)
}
