package cell

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// inside is testdata/inside, built once.
var inside = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "cell-test-")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-o", dir, "./testdata/inside")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build inside: %w\n%s", err, out)
	}
	return filepath.Join(dir, "inside"), os.Chmod(dir, 0o755)
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := inside(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// tell starts inside in a cell and returns what it says.
func tell(t *testing.T, c Cell, words ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("missing: root")
	}
	program, err := inside()
	if err != nil {
		t.Fatal(err)
	}
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	c.Dir = t.TempDir()
	c.Binds = append(c.Binds, Bind{Source: program, Target: "/inside"})
	pid, err := c.Start("/inside", append([]string{"inside"}, words...), []*os.File{out, out, out}, syscall.SysProcAttr{})
	out.Close()
	if err != nil {
		t.Fatal(err)
	}
	said, err := io.ReadAll(in)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Wait4(pid, nil, 0, nil); err != nil {
		t.Fatal(err)
	}
	return string(said)
}

func TestConfined(t *testing.T) {
	const want = `list: [/inside] <nil>
write:/x open /x: read-only file system
kill operation not permitted
mount operation not permitted
unshare operation not permitted
clone operation not permitted
netlink operation not permitted
inet <nil>
caps 40000 0 <nil>
user 0 0 [0]
`
	got := tell(t, Cell{}, "list:", "write:/x", "kill", "mount", "unshare", "clone", "netlink", "inet", "caps", "user")
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestConfinedSignals needs the kernel's help.
func TestConfinedSignals(t *testing.T) {
	v, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if e != 0 || v < 6 {
		t.Skip("missing: Landlock with scopes (Linux 6.12)")
	}
	if got := tell(t, Cell{}, "tgkill"); got != "tgkill operation not permitted\n" {
		t.Errorf("got %q", got)
	}
}

func TestOffline(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dial := "dial:" + l.Addr().String()
	if got := tell(t, Cell{}, dial); got != dial+" <nil>\n" {
		t.Errorf("online: %q", got)
	}
	if got := tell(t, Cell{Offline: true}, dial); got != dial+" network is unreachable\n" {
		t.Errorf("offline: %q", got)
	}
}

func TestUser(t *testing.T) {
	umask := uint32(0o27)
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	c := Cell{
		User:  specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{7}, Umask: &umask},
		Keep:  []string{"CAP_NET_BIND_SERVICE", "CAP_SYS_ADMIN"},
		Binds: []Bind{{Source: dir, Target: "/dir", Writable: true}},
	}
	if got, want := tell(t, c, "user", "caps", "write:/dir/new"), "user 1000 1001 [7 1001]\ncaps 40400 0 <nil>\nwrite:/dir/new <nil>\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	info, err := os.Stat(filepath.Join(dir, "new"))
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); info.Mode() != 0o640 || st.Uid != 1000 || st.Gid != 1001 {
		t.Errorf("mode %v, user %d, group %d", info.Mode(), st.Uid, st.Gid)
	}
}

// TestReadOnlyTree has a volume with another file system below it.
func TestReadOnlyTree(t *testing.T) {
	volume := t.TempDir()
	below := filepath.Join(volume, "below")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("below", below, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(below, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	c := Cell{Rootfs: t.TempDir(), Mounts: []specs.Mount{
		{Type: "bind", Source: volume, Destination: "/ro", Options: []string{"rbind", "ro"}},
		{Type: "bind", Source: volume, Destination: "/rro", Options: []string{"rbind", "ro", "rro"}},
	}}
	got := tell(t, c, "write:/root/ro/new", "write:/root/ro/below/new", "write:/root/rro/new", "write:/root/rro/below/more")
	const want = `write:/root/ro/new open /root/ro/new: read-only file system
write:/root/ro/below/new <nil>
write:/root/rro/new open /root/rro/new: read-only file system
write:/root/rro/below/more open /root/rro/below/more: read-only file system
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestMounts has an image that would have mounts go elsewhere.
func TestMounts(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	for _, sub := range []string{"victim", "rootfs/sub", "rootfs/" + victim, "volume"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(victim, filepath.Join(dir, "rootfs/link")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	bind := func(source, target string, options ...string) specs.Mount {
		return specs.Mount{Type: "bind", Source: source, Destination: target, Options: append(options, "rbind")}
	}
	c := Cell{
		Rootfs: filepath.Join(dir, "rootfs"), ReadOnly: true,
		Mounts: []specs.Mount{
			{Type: "proc", Destination: "/proc"}, {Type: "tmpfs", Destination: "/dev"},
			bind(filepath.Join(dir, "volume"), "/rw"), bind(filepath.Join(dir, "volume"), "/ro", "ro"),
			bind(filepath.Join(dir, "volume"), "/link/deep"), bind(file, "/dev/termination-log"),
			{Type: "tmpfs", Destination: "/scratch", Options: []string{"nosuid", "inode64", "size=64k", "mode=1777"}},
		},
	}
	got := tell(t, c, "write:/root/new", "write:/root/sub/new", "write:/root/rw/new", "write:/root/ro/new", "write:/root/scratch/new",
		"write:/root/dev/termination-log", "list:root/proc", "list:root/"+victim+"/deep")
	want := `write:/root/new open /root/new: read-only file system
write:/root/sub/new open /root/sub/new: read-only file system
write:/root/rw/new <nil>
write:/root/ro/new open /root/ro/new: read-only file system
write:/root/scratch/new <nil>
write:/root/dev/termination-log <nil>
list:root/proc [] <nil>
` + fmt.Sprintf("list:root/%[1]s/deep [/root%[1]s/deep/new] <nil>\n", victim)
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if left, _ := filepath.Glob(victim + "/*"); left != nil {
		t.Errorf("outside of the root file system there is %s", left)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "inside" {
		t.Errorf("file %q, %v", text, err)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("mounts are left, or %v", err)
	}
}
