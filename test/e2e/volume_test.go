package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// volumes makes what kubelet makes for a pod: directories and files of this
// host, below a mount of its own that shares what is mounted there.
func volumes(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	mounted(t, dir, "tmpfs", "mode=0755")
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		write(t, filepath.Join(dir, name), text)
	}
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// mounted mounts a file system until the test ends.
func mounted(t *testing.T, dir, kind, options string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("test", dir, kind, 0, options); err != nil {
		t.Fatalf("mount %s on %s: %v", kind, dir, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

func text(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// project makes a directory of symbolic links another version, as kubelet does it
// with ConfigMaps and Secrets: ..data is replaced by one rename.
func project(t *testing.T, dir, version, value string) {
	t.Helper()
	write(t, filepath.Join(dir, ".."+version, "key"), value)
	next := filepath.Join(dir, "..data_tmp")
	if err := os.Symlink(".."+version, next); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
}

// TestVolumes gives a container every kind of volume that kubelet has.
func TestVolumes(t *testing.T) {
	each(t, func(t *testing.T, n *fixture) {
		dir := volumes(t, map[string]string{
			"dir/file": "of the host\n", "file": "one\n", "readonly/file": "fixed\n", "fixed": "fixed\n",
			"whole/part/file": "part\n", "hosts": "192.0.2.7 one\n",
		})
		path := func(name string) string { return filepath.Join(dir, name) }
		for _, name := range []string{"empty", "below"} {
			if err := os.Mkdir(path(name), 0o777); err != nil {
				t.Fatal(err)
			}
		}
		mounted(t, path("memory"), "tmpfs", "size=1m,mode=1777")
		project(t, path("config"), "first", "first\n")
		if err := os.Symlink("..data/key", path("config/key")); err != nil {
			t.Fatal(err)
		}
		c := n.run(n.pod(nil), func(c *runtime.ContainerConfig) {
			add := func(from, to string, readOnly bool, p runtime.MountPropagation) {
				c.Mounts = append(c.Mounts, &runtime.Mount{HostPath: path(from), ContainerPath: to, Readonly: readOnly, Propagation: p})
			}
			const private, slave = runtime.MountPropagation_PROPAGATION_PRIVATE, runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
			add("dir", "/v/dir", false, private)
			add("file", "/v/file", false, private)
			add("readonly", "/v/readonly", true, private)
			add("fixed", "/v/fixed", true, private)
			add("whole/part", "/v/part", false, private)
			add("empty", "/v/empty", false, private)
			add("memory", "/v/memory", false, private)
			add("config", "/v/config", true, private)
			add("below", "/v/below", false, slave)
			add("below", "/v/private", false, private)
			add("hosts", "/etc/hosts", false, private)
		})

		equal(t, "directory", n.exec(c, "cat /v/dir/file"), "of the host")
		n.exec(c, "echo of the container > /v/dir/new && mkdir /v/dir/sub && mv /v/dir/new /v/dir/sub")
		equal(t, "file of the container", text(t, path("dir/sub/new")), "of the container\n")
		equal(t, "file", n.exec(c, "cat /v/file"), "one")
		n.exec(c, "echo two >> /v/file")
		equal(t, "file after the container wrote", text(t, path("file")), "one\ntwo\n")
		write(t, path("file"), "changed\n")
		equal(t, "file after the host wrote", n.exec(c, "cat /v/file"), "changed")
		equal(t, "subPath", n.exec(c, "ls /v/part"), "file")
		equal(t, "hosts of kubelet", n.exec(c, "cat /etc/hosts"), "192.0.2.7 one")

		readonly, err := c.Exec(n.ctx, "echo x > /v/readonly/new; echo x > /v/readonly/file; rm /v/readonly/file; echo x > /v/fixed")
		n.must(err)
		equal(t, "refusals to write", strings.Count(string(readonly.Stderr), "Read-only file system"), 4)
		equal(t, "read-only file", text(t, path("fixed")), "fixed\n")

		n.exec(c, "head -c 4000000 /dev/zero > /v/empty/large")
		r, err := c.Exec(n.ctx, "dd if=/dev/zero of=/v/memory/large bs=1M count=4")
		n.must(err)
		contains(t, "more than fits into memory", string(r.Stderr), "No space left on device")
		n.exec(c, "rm /v/memory/large; head -c 500000 /dev/zero > /v/memory/some")
		equal(t, "file in memory", len(text(t, path("memory/some"))), 500000)

		equal(t, "ConfigMap", n.exec(c, "cat /v/config/key"), "first")
		project(t, path("config"), "second", "second\n")
		// The kernel of a guest believes for a second what a link was.
		n.exec(c, "for i in $(seq 20); do grep -q second /v/config/key && break; sleep 0.1; done")
		equal(t, "ConfigMap after its change", n.exec(c, "cat /v/config/key"), "second")
		equal(t, "ConfigMap by its whole path", n.exec(c, "cat /v/config/..data/key"), "second")

		mounted(t, path("below/mounted"), "tmpfs", "")
		write(t, path("below/mounted/file"), "later\n")
		equal(t, "what is mounted later", n.exec(c, "cat /v/below/mounted/file"), "later")
		equal(t, "what is mounted later, where that is private", n.exec(c, "ls /v/private/mounted"), "")
	})
}
