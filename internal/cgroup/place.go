package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// Place moves a process into the cgroup name, counted from the root, of every
// hierarchy: the one of v2, or each of v1's, systemd's named one included, by
// which a service's processes are found and killed. The cgroup is made where
// there is none, with its figures where it is new.
func Place(pid int, name string) error {
	all, err := mounted()
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range all {
		dir := filepath.Join(h.path, name)
		if err := makeCgroup(dir, h); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, writeFile(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid)))
	}
	return errors.Join(errs...)
}

// Remove removes a cgroup that Place made, in every hierarchy. It must be empty.
// Idempotent.
func Remove(name string) error {
	all, err := mounted()
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range all {
		if err := os.Remove(filepath.Join(h.path, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// mounted are the hierarchies. A host with many pods has many mounts: they are
// read once.
var mounted = sync.OnceValues(func() ([]hierarchy, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	return hierarchies(string(b)), err
})

// Hierarchies are where the trees of cgroups are mounted.
func Hierarchies() ([]string, error) {
	all, err := mounted()
	paths := make([]string, len(all))
	for i, h := range all {
		paths[i] = h.path
	}
	return paths, err
}

// hierarchy is a mounted tree of cgroups.
type hierarchy struct {
	path    string
	cpuset  bool
	unified bool
}

// hierarchies finds each once, by its device: where most of it is visible. In
// a container that may be a part of it.
func hierarchies(mountinfo string) []hierarchy {
	var found []hierarchy
	roots := map[string]string{}
	index := map[string]int{}
	for line := range strings.Lines(mountinfo) {
		// proc_pid_mountinfo(5): 3rd device, 4th root, 5th mount point, then
		// after a dash: type, source, options.
		mount, fstype, ok := strings.Cut(line, " - ")
		f, t := strings.Fields(mount), strings.Fields(fstype)
		if !ok || len(f) < 5 || len(t) < 3 || (t[0] != "cgroup" && t[0] != "cgroup2") {
			continue
		}
		device, root, path := f[2], f[3], unescape(f[4])
		former, again := roots[device]
		if again && len(root) >= len(former) {
			continue
		}
		roots[device] = root
		if again {
			found[index[device]].path = path
			continue
		}
		index[device] = len(found)
		options := "," + t[2] + ","
		found = append(found, hierarchy{path: path, cpuset: t[0] == "cgroup" && strings.Contains(options, ",cpuset,"), unified: t[0] == "cgroup2"})
	}
	return found
}

// unescape undoes the kernel's octal escapes of white space in paths.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func makeCgroup(dir string, h hierarchy) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	err := os.Mkdir(dir, 0o755)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if h.unified && err == nil {
		account(h.path, filepath.Dir(dir))
	}
	if !h.cpuset {
		return nil
	}
	// A new one of v1 has no CPUs and no memory, and takes no process.
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		if err := inherit(h.path, dir, name); err != nil {
			return err
		}
	}
	return nil
}

// accounted are the controllers of v2 that a cgroup of Place has where the host
// does; processor time is counted without one.
var accounted = []string{"io", "memory", "pids"}

// account turns them on for what is below dir, as it must be from the root on. A
// cgroup with processes refuses, and what a controller is not on for has no
// figures: so it is with pods whose parent the host runs processes in.
func account(root, dir string) {
	if dir != root {
		account(root, filepath.Dir(dir))
	}
	for _, name := range accounted {
		_ = writeFile(filepath.Join(dir, "cgroup.subtree_control"), "+"+name)
	}
}

// inherit copies a setting from the root down to dir where it is empty.
func inherit(root, dir, name string) error {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // mounted with noprefix, or not this kind
	}
	if err != nil || len(bytes.TrimSpace(b)) > 0 || dir == root {
		return err
	}
	parent := filepath.Dir(dir)
	if err := inherit(root, parent, name); err != nil {
		return err
	}
	if b, err = os.ReadFile(filepath.Join(parent, name)); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, name), string(b))
}

func writeFile(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %q: %w", value, err)
	}
	return nil
}
