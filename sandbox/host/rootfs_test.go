package host

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func image(t *testing.T) (dir string, mounts []mount.Mount) {
	t.Helper()
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "precious"), []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, []mount.Mount{{Type: "bind", Source: dir, Options: []string{"rbind", "rw"}}}
}

func TestBundle(t *testing.T) {
	needRoot(t)
	dir := tempDir(t)
	source, mounts := image(t)
	s := &specs.Spec{Root: &specs.Root{Path: "rootfs", Readonly: true}, Process: &specs.Process{Args: []string{"x"}}}
	path, err := MakeBundle(t.Context(), dir, "c", s, mounts, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got specs.Spec
	if err := json.Unmarshal([]byte(read(t, filepath.Join(path, "config.json"))), &got); err != nil {
		t.Fatal(err)
	}
	if got.Root.Path != filepath.Join(path, "rootfs") || !got.Root.Readonly || got.Process.Args[0] != "x" {
		t.Errorf("config.json has %+v", got.Root)
	}
	if read(t, filepath.Join(got.Root.Path, "precious")) != "data" {
		t.Error("the rootfs is not mounted")
	}
	if _, err := MakeBundle(t.Context(), dir, "c", s, mounts, nil); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second bundle of the same id: %v", err)
	}
	if ids, err := Bundles(dir); err != nil || len(ids) != 1 || ids[0] != "c" {
		t.Errorf("bundles: %q, %v", ids, err)
	}
	for range 2 {
		if err := RemoveBundle(dir, "c"); err != nil {
			t.Fatal(err)
		}
	}
	if ids, err := Bundles(dir); err != nil || len(ids) != 0 {
		t.Errorf("bundles afterwards: %q, %v", ids, err)
	}
	if read(t, filepath.Join(source, "precious")) != "data" {
		t.Error("the image is damaged")
	}
}

func TestBundleRefuses(t *testing.T) {
	needRoot(t)
	dir := tempDir(t)
	missing := []mount.Mount{{Type: "bind", Source: "/no/such/image", Options: []string{"bind"}}}
	for _, test := range []struct {
		name, id string
		root     *specs.Root
		mounts   []mount.Mount
		is       func(error) bool
		want     string
	}{
		{"no rootfs", "c", &specs.Root{Path: "rootfs"}, nil, errdefs.IsInvalidArgument, "no rootfs"},
		{"no root", "c", nil, nil, errdefs.IsInvalidArgument, "no root"},
		{"id that leads elsewhere", "../c", &specs.Root{Path: "/"}, nil, errdefs.IsInvalidArgument, "../c"},
		{"image that is gone", "c", &specs.Root{Path: "rootfs"}, missing, func(err error) bool { return errors.Is(err, os.ErrNotExist) }, "rootfs of container c"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := MakeBundle(t.Context(), dir, test.id, &specs.Spec{Root: test.root}, test.mounts, nil)
			if err == nil || !test.is(err) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v", err)
			}
			if ids, err := Bundles(dir); err != nil || len(ids) != 0 {
				t.Errorf("left behind: %q, %v", ids, err)
			}
		})
	}
	if err := RemoveBundle(dir, ".."); !errdefs.IsInvalidArgument(err) {
		t.Errorf("removal of ..: %v", err)
	}
}

// crash makes what a daemon leaves that died at some point of MakeBundle.
func TestRemoveBundleAfterACrash(t *testing.T) {
	needRoot(t)
	source, _ := image(t)
	for name, crash := range map[string]func(t *testing.T, path string){
		"directory": func(*testing.T, string) {},
		"rootfs":    func(t *testing.T, path string) { must(t, os.Mkdir(filepath.Join(path, "rootfs"), 0o700)) },
		"mounted twice": func(t *testing.T, path string) {
			rootfs := filepath.Join(path, "rootfs")
			must(t, os.Mkdir(rootfs, 0o700))
			for range 2 {
				must(t, unix.Mount(source, rootfs, "", unix.MS_BIND, ""))
			}
		},
		"symlink": func(t *testing.T, path string) { must(t, os.Symlink(source, filepath.Join(path, "rootfs"))) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := tempDir(t)
			must(t, os.MkdirAll(Bundle(dir, "c"), 0o700))
			crash(t, Bundle(dir, "c"))
			must(t, RemoveBundle(dir, "c"))
			if read(t, filepath.Join(source, "precious")) != "data" {
				t.Error("the image is damaged")
			}
			if _, err := os.Lstat(Bundle(dir, "c")); !os.IsNotExist(err) {
				t.Errorf("the bundle is there: %v", err)
			}
		})
	}
}

// A rootfs that does not let itself be unmounted must stay whole.
func TestRemoveBundleNeverDeletesThroughARootfs(t *testing.T) {
	needRoot(t)
	dir := tempDir(t)
	rootfs := filepath.Join(Bundle(dir, "c"), "rootfs")
	must(t, os.MkdirAll(rootfs, 0o700))
	must(t, os.WriteFile(filepath.Join(rootfs, "precious"), nil, 0o600))
	if err := RemoveBundle(dir, "c"); err == nil {
		t.Error("it was removed with what is in it")
	}
	if _, err := os.Stat(filepath.Join(rootfs, "precious")); err != nil {
		t.Error(err)
	}
}

func TestBundleOfAnotherRoot(t *testing.T) {
	needRoot(t)
	dir := tempDir(t)
	_, mounts := image(t)
	user := &IDMap{UID: specs.LinuxIDMapping{HostID: 1234, Size: 9}, GID: specs.LinuxIDMapping{HostID: 2345, Size: 9}}
	path, err := MakeBundle(t.Context(), dir, "c", &specs.Spec{Root: &specs.Root{Path: "rootfs"}}, mounts, user)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if s := info.Sys().(*syscall.Stat_t); s.Uid != 0 || s.Gid != 2345 || info.Mode().Perm() != 0o710 {
		t.Errorf("the bundle belongs to %d:%d, mode %s", s.Uid, s.Gid, info.Mode())
	}
	must(t, RemoveBundle(dir, "c"))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
