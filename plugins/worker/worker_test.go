package worker

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestCheck(t *testing.T) {
	for _, test := range []struct {
		config Config
		want   string // of the error
	}{
		{Config{Cgroup: "/kuasar-task"}, ""},
		{Config{Cgroup: "/system.slice/worker", Path: "/usr/bin/kuasar-task"}, ""},
		{Config{Cgroup: "/kuasar-task", Path: "kuasar-task"}, "path"},
		{Config{}, "cgroup"},
		{Config{Cgroup: "/"}, "cgroup"},
		{Config{Cgroup: "kuasar-task"}, "cgroup"},
		{Config{Cgroup: "/a/../.."}, "cgroup"},
	} {
		err := test.config.check()
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%+v: %v", test.config, err)
		case test.want != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%+v: %v, want one about %s", test.config, err, test.want)
		}
	}
}

func TestFind(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	c := &Config{}
	if _, err := c.find(); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "path") {
		t.Errorf("nowhere: %v", err)
	}
	want := filepath.Join(os.Getenv("PATH"), name)
	if err := os.WriteFile(want, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := c.find(); err != nil || got != want {
		t.Errorf("in PATH: %s, %v", got, err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	beside := filepath.Join(filepath.Dir(self), name)
	if err := os.WriteFile(beside, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(beside)
	if got, err := c.find(); err != nil || got != beside {
		t.Errorf("beside the daemon: %s, %v", got, err)
	}
	c.Path = "/configured"
	if got, err := c.find(); err != nil || got != c.Path {
		t.Errorf("configured: %s, %v", got, err)
	}
}
