package host

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFiles(t *testing.T) {
	needRoot(t)
	dir := tempDir(t)
	c := config(nil, nil)
	c.DnsConfig = &runtime.DNSConfig{Servers: []string{"10.0.0.1", "10.0.0.2"}, Searches: []string{"a", "b"}, Options: []string{"ndots:5"}}
	for range 2 {
		if err := errors.Join(MakeFiles(dir, c, nil), MakeShm(dir, c)); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"hostname":    "pod\n",
		"hosts":       read(t, "/etc/hosts"),
		"resolv.conf": "search a b\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5\n",
	} {
		if got := read(t, filepath.Join(dir, name)); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	shm := filepath.Join(dir, "shm")
	var fs unix.Statfs_t
	if err := unix.Statfs(shm, &fs); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(shm)
	if err != nil {
		t.Fatal(err)
	}
	if size := fs.Blocks * uint64(fs.Bsize); size != 64<<20 || info.Mode().Perm() != 0o777 || info.Mode()&os.ModeSticky == 0 {
		t.Errorf("shm: %d bytes, mode %s", size, info.Mode())
	}
	if flags := fs.Flags & (unix.ST_NOEXEC | unix.ST_NOSUID | unix.ST_NODEV); flags != unix.ST_NOEXEC|unix.ST_NOSUID|unix.ST_NODEV {
		t.Errorf("shm: flags %x", fs.Flags)
	}
	// A second MakeFiles did not mount over the first.
	if err := unix.Unmount(shm, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if own, err := device(shm); err != nil || own != inDevice(t, dir) {
		t.Errorf("shm was mounted twice: %v", err)
	}
	for range 2 {
		if err := RemoveShm(dir); err != nil {
			t.Error(err)
		}
	}
}

func inDevice(t *testing.T, path string) uint64 {
	t.Helper()
	d, err := device(path)
	must(t, err)
	return d
}

func TestFilesOfTheHost(t *testing.T) {
	dir := tempDir(t)
	c := config(&runtime.NamespaceOption{Ipc: runtime.NamespaceMode_NODE}, nil)
	c.Hostname = ""
	if err := errors.Join(MakeFiles(dir, c, nil), MakeShm(dir, c)); err != nil {
		t.Fatal(err)
	}
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(dir, "hostname")); got != name+"\n" {
		t.Errorf("hostname: %q", got)
	}
	if got := read(t, filepath.Join(dir, "resolv.conf")); got != read(t, "/etc/resolv.conf") {
		t.Errorf("resolv.conf: %q", got)
	}
	if _, err := os.Stat(filepath.Join(dir, "shm")); !os.IsNotExist(err) {
		t.Errorf("a pod in the host's ipc namespace has a shm: %v", err)
	}
}

func TestFilesBelongToTheContainersRoot(t *testing.T) {
	needRoot(t)
	dir := tempDir(t)
	user := &IDMap{UID: specs.LinuxIDMapping{HostID: 1234, Size: 9}, GID: specs.LinuxIDMapping{HostID: 2345, Size: 9}}
	if err := errors.Join(MakeFiles(dir, config(nil, nil), user), MakeShm(dir, config(nil, nil))); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "hosts"))
	if err != nil {
		t.Fatal(err)
	}
	if s := info.Sys().(*syscall.Stat_t); s.Uid != 1234 || s.Gid != 2345 {
		t.Errorf("hosts belongs to %d:%d", s.Uid, s.Gid)
	}
	if err := RemoveShm(dir); err != nil {
		t.Error(err)
	}
}

func TestPassable(t *testing.T) {
	dir := t.TempDir()
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if info, err := os.Stat(d); err == nil && info.Mode().Perm()&1 == 0 {
			must(t, os.Chmod(d, 0o711))
		}
	}
	closed := filepath.Join(dir, "closed")
	deep := filepath.Join(closed, "deep")
	must(t, os.MkdirAll(deep, 0o711))
	if err := Passable(deep); err != nil {
		t.Error(err)
	}
	must(t, os.Chmod(closed, 0o700))
	if err := Passable(deep); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), closed+" ") {
		t.Errorf("got %v", err)
	}
}
