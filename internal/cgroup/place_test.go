package cgroup

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestHierarchies(t *testing.T) {
	const mounts = `25 1 0:5 / /proc rw - proc proc rw
30 1 0:26 / /sys/fs/cgroup/cpuset rw,relatime shared:9 - cgroup cgroup rw,cpuset
31 1 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
32 1 0:28 / /sys/fs/cgroup/uni\040fied rw - cgroup2 cgroup2 rw,nsdelegate
33 1 0:27 / /mnt/again rw - cgroup cgroup rw,xattr,name=systemd
34 1 0:29 /box/pod /mnt/part rw - cgroup cgroup rw,memory
35 1 0:29 /box /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
broken
`
	want := []hierarchy{
		{path: "/sys/fs/cgroup/cpuset", cpuset: true}, {path: "/sys/fs/cgroup/systemd"},
		{path: "/sys/fs/cgroup/uni fied", unified: true}, {path: "/sys/fs/cgroup/memory"},
	}
	if got := hierarchies(mounts); !slices.Equal(got, want) {
		t.Errorf("got %+v", got)
	}
}

// A process is moved in all hierarchies, and an empty cgroup goes.
func TestPlace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	const group = "/kuasar-test-place/below"
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
		for _, name := range []string{group, filepath.Dir(group), group} {
			if err := Remove(name); err != nil {
				t.Error(err)
			}
		}
	})
	for range 2 {
		if err := Place(cmd.Process.Pid, group); err != nil {
			t.Fatal(err)
		}
	}
	all, err := Hierarchies()
	if err != nil || len(all) == 0 {
		t.Fatalf("hierarchies %v, %v", all, err)
	}
	for _, dir := range all {
		b, err := os.ReadFile(filepath.Join(dir, group, "cgroup.procs"))
		if err != nil || len(strings.Fields(string(b))) != 1 {
			t.Errorf("%s: %q, %v", dir, b, err)
		}
		for _, name := range accounted {
			there, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
			if err != nil || !slices.Contains(strings.Fields(string(there)), name) {
				continue // of version 1, or used by that
			}
			here, err := os.ReadFile(filepath.Join(dir, group, "cgroup.controllers"))
			if err != nil || !slices.Contains(strings.Fields(string(here)), name) {
				t.Errorf("%s: the cgroup has controllers %q, %v", name, here, err)
			}
		}
	}
	if Remove(group) == nil {
		t.Error("a cgroup with a process was removed")
	}
}
