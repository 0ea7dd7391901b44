package bed

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// groupVariable names the cgroup that the init process enters.
const groupVariable = "KUASAR_BED_CGROUP"

const groupRoot = "/sys/fs/cgroup"

func groupName(pid int) string { return "kuasar-bed-" + strconv.Itoa(pid) }

// hierarchy is one mounted cgroup hierarchy: one of many of version 1, or the
// one of version 2.
type hierarchy struct {
	path    string // mount point
	version int
	options string // of a version 1 mount: its controllers
}

// hierarchies reads them from the mount table.
func hierarchies() ([]hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list cgroups: %w", err)
	}
	defer f.Close()
	var all []hierarchy
	for scanner := bufio.NewScanner(f); scanner.Scan(); {
		before, after, _ := strings.Cut(scanner.Text(), " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if len(fields) < 5 || len(kind) < 3 || !strings.HasPrefix(fields[4], groupRoot) {
			continue
		}
		// A later mount on the same path hides the one before.
		all = slices.DeleteFunc(all, func(h hierarchy) bool { return h.path == fields[4] })
		switch kind[0] {
		case "cgroup":
			all = append(all, hierarchy{fields[4], 1, controllers(kind[2])})
		case "cgroup2":
			all = append(all, hierarchy{fields[4], 2, ""})
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no cgroup hierarchy is mounted below %s", groupRoot)
	}
	return all, nil
}

// controllers drops what is not a controller from a mount's super options.
func controllers(options string) string {
	all := strings.Split(options, ",")
	all = slices.DeleteFunc(all, func(o string) bool {
		return o == "rw" || o == "ro" || o == "clone_children" || o == "xattr" || strings.HasPrefix(o, "release_agent=")
	})
	return strings.Join(all, ",")
}

// enterGroup makes a cgroup of that name in every hierarchy, and the root of
// what this thread and its children see.
func enterGroup(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		if err := h.enter(name); err != nil {
			return fmt.Errorf("enter cgroup %s: %w", filepath.Join(h.path, name), err)
		}
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("unshare cgroup namespace: %w", err)
	}
	if len(all) > 1 {
		if err := unix.Mount("cgroups", groupRoot, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mount %s: %w", groupRoot, err)
		}
	}
	for _, h := range all {
		if err := h.mount(); err != nil {
			return fmt.Errorf("mount cgroup %s: %w", h.path, err)
		}
	}
	return nil
}

func (h hierarchy) enter(name string) error {
	dir := filepath.Join(h.path, name)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if slices.Contains(strings.Split(h.options, ","), "cpuset") {
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(h.path, file))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, file), value, 0); err != nil {
				return err
			}
		}
	}
	if h.version == 2 {
		enable(h.path) // what the machine's root does not give, nobody below has
	}
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0)
}

func (h hierarchy) mount() error {
	if err := os.MkdirAll(h.path, 0o755); err != nil {
		return err
	}
	if h.version == 1 {
		return unix.Mount("cgroup", h.path, "cgroup", 0, h.options)
	}
	// The kernel refuses the same file system on top of itself.
	if err := unix.Unmount(h.path, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
		return err
	}
	if err := unix.Mount("cgroup2", h.path, "cgroup2", 0, ""); err != nil {
		return err
	}
	// A version 2 group with processes of its own cannot share out
	// controllers to groups below.
	inner := filepath.Join(h.path, "init")
	if err := os.Mkdir(inner, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(inner, "cgroup.procs"), []byte("0"), 0); err != nil {
		return err
	}
	enable(h.path)
	return nil
}

// enable gives the groups below path all controllers that path has.
func enable(path string) {
	names, err := os.ReadFile(filepath.Join(path, "cgroup.controllers"))
	if err != nil {
		return
	}
	for _, name := range strings.Fields(string(names)) {
		// One at a time: those that are busy elsewhere are left out.
		_ = os.WriteFile(filepath.Join(path, "cgroup.subtree_control"), []byte("+"+name), 0)
	}
}

// thaw wakes every frozen group: a frozen process cannot die.
func thaw() error {
	return eachGroup(groupRoot, func(dir string) error {
		for file, value := range map[string]string{"freezer.state": "THAWED", "cgroup.freeze": "0"} {
			path := filepath.Join(dir, file)
			if _, err := os.Stat(path); err != nil {
				continue
			}
			if err := os.WriteFile(path, []byte(value), 0); err != nil && !errors.Is(err, fs.ErrInvalid) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
				return err
			}
		}
		return nil
	})
}

// removeGroup removes the named group and all below it from every hierarchy.
func removeGroup(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range all {
		errs = append(errs, eachGroup(filepath.Join(h.path, name), func(dir string) error {
			if err := os.Remove(dir); !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		}))
	}
	return errors.Join(errs...)
}

// eachGroup calls f for every directory below dir and dir itself, the deepest
// first. A dir that does not exist is none.
func eachGroup(dir string, f func(dir string) error) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, entry := range entries {
		if entry.IsDir() {
			errs = append(errs, eachGroup(filepath.Join(dir, entry.Name()), f))
		}
	}
	return errors.Join(append(errs, f(dir))...)
}
