package group

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// hierarchies are where a test's cgroup is, by what it is killed with.
var hierarchies = map[string]struct {
	controller string
	roots      []string
}{
	"freezer of v1": {"freezer", []string{"/sys/fs/cgroup/freezer"}},
	"cgroup.kill":   {"", []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"}},
	"signals alone": {"devices", []string{"/sys/fs/cgroup/devices"}},
}

// TestDestroyOutrunsForks has a process fork after it was listed and before it
// is killed.
func TestDestroyOutrunsForks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes cgroups")
	}
	for name, h := range hierarchies {
		t.Run(name, func(t *testing.T) {
			dir := makeGroup(t, h.controller, h.roots)
			record := t.TempDir()
			g := Group{Paths: map[string]string{h.controller: dir}, Config: &cgroups.Cgroup{Resources: &cgroups.Resources{SkipDevices: true}}}
			if err := g.Save(record); err != nil {
				t.Fatal(err)
			}
			if err := g.Kill(); !errdefs.IsNotFound(err) {
				t.Errorf("kill nothing: %v", err)
			}
			fork := forker(t, dir)
			kill = func(pid int, sig unix.Signal) error {
				fork()
				return unix.Kill(pid, sig)
			}
			defer func() { kill = unix.Kill }()
			if err := Destroy(record); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is left: %v", dir, err)
			}
		})
	}
}

// makeGroup makes a cgroup below the first root that is of the right kind.
func makeGroup(t *testing.T, controller string, roots []string) string {
	t.Helper()
	var kind int64 = unix.CGROUP_SUPER_MAGIC
	if controller == "" {
		kind = unix.CGROUP2_SUPER_MAGIC
	}
	for _, root := range roots {
		var fs unix.Statfs_t
		if err := unix.Statfs(root, &fs); err != nil || fs.Type != kind {
			continue
		}
		dir := filepath.Join(root, "kuasar-group-test-"+strconv.Itoa(os.Getpid()))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	t.Skipf("needs one of %v as a cgroup hierarchy", roots)
	return ""
}

// frozen is how long a process is waited for that may be frozen.
const frozen = 100 * time.Millisecond

// forker puts a process into a cgroup that forks once it is asked to. fork
// returns when it has, or cannot; all calls after the first do nothing.
func forker(t *testing.T, dir string) (fork func()) {
	t.Helper()
	in, ask, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	answer, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "read go; sleep 1000 & echo forked; wait")
	cmd.Stdin, cmd.Stdout = in, out
	err = errors.Join(unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), cmd.Start(), in.Close(), out.Close())
	if err == nil {
		err = cgroups.WriteCgroupProc(dir, cmd.Process.Pid)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ask.Close()
		answer.Close()
		g := Group{Paths: map[string]string{"": dir}}
		for g.Signal(unix.SIGKILL) == nil { // after a failure
		}
		_ = cmd.Wait()
		for { // the process that it left
			if _, err := unix.Wait4(-1, nil, 0, nil); err == unix.ECHILD {
				break
			}
		}
		_ = cgroups.RemovePath(dir)
	})
	return sync.OnceFunc(func() {
		derr := answer.SetReadDeadline(time.Now().Add(frozen))
		_, werr := ask.Write([]byte{'\n'})
		_, err := answer.Read(make([]byte, 1))
		if err = errors.Join(derr, werr, err); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
	})
}
