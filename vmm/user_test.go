package vmm

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

func TestUserOf(t *testing.T) {
	seen := map[uint32]string{}
	for _, pod := range []string{"", "a", "b", "0123456789abcdef"} {
		u := userOf(pod)
		if u < firstUser || u >= firstUser+manyUsers || seen[u] != "" || u != userOf(pod) {
			t.Errorf("%q is user %d, as %q", pod, u, seen[u])
		}
		seen[u] = pod + "."
	}
}

// What another user could not open is found out before it has to.
func TestAnyone(t *testing.T) {
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	if anyone(dir, 0o001) != nil {
		t.Skip("needs a temporary directory that is everybody's")
	}
	if err := os.Mkdir(filepath.Join(dir, "private"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]fs.FileMode{"open": 0o644, "program": 0o711, "closed": 0o640, "private/open": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("closed", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		want fs.FileMode
		ok   bool
	}{
		{"open", 0o004, true},
		{"open", 0o001, false},
		{"program", 0o001, true},
		{"program", 0o004, false},
		{"closed", 0o004, false},
		{"link", 0o004, false},
		{"private/open", 0o004, false},
		{"none", 0o004, false},
	} {
		if err := anyone(filepath.Join(dir, test.name), test.want); (err == nil) != test.ok {
			t.Errorf("%s for %o: %v", test.name, test.want, err)
		}
	}
}

func TestGroupOf(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: chown")
	}
	path := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		mode   fs.FileMode
		group  int
		groups int
		ok     bool
	}{
		{0o666, 0, 0, true},
		{0o660, 7, 1, true},
		{0o660, 0, 0, false}, // a member of root's has more than the device
		{0o640, 7, 0, false},
		{0o600, 7, 0, false},
	} {
		if err := os.Chown(path, 0, test.group); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, test.mode); err != nil {
			t.Fatal(err)
		}
		groups, err := groupOf(path)
		if (err == nil) != test.ok || len(groups) != test.groups || err != nil && !errdefs.IsPermissionDenied(err) {
			t.Errorf("%v of group %d: %v, %v", test.mode, test.group, groups, err)
		}
	}
}

// A socket that was replaced by a link does not lead the daemon elsewhere.
func TestDialFollowsNothing(t *testing.T) {
	dir := socketDir(t)
	l, err := Listen(filepath.Join(dir, "other"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Symlink("other", filepath.Join(dir, "v")); err != nil {
		t.Fatal(err)
	}
	for name, ok := range map[string]bool{"other": true, "v": false} {
		var c *net.UnixConn
		if c, err = Dial(t.Context(), filepath.Join(dir, name)); (err == nil) != ok {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			c.Close()
		}
	}
}
