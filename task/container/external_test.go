package container

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestExternal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	fifo, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer fifo.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	p, err := os.StartProcess("/bin/sleep", []string{"sleep", "1000"}, &os.ProcAttr{Files: []*os.File{nil, fifo, w}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Wait()
	defer p.Kill()
	got, err := external(p.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || !regexp.MustCompile(`^file\[[0-9a-f]+:[0-9a-f]+\]$`).MatchString(got[1]) {
		t.Errorf("got %v", got)
	}
}

func TestInherit(t *testing.T) {
	dir, image := t.TempDir(), t.TempDir()
	spec := &specs.Spec{}
	if config, err := inherit(spec, image); err != nil || config != nil || spec.Annotations != nil {
		t.Errorf("an image without: %v, %v", spec.Annotations, err)
	}
	put := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	own := filepath.Join(dir, "own.conf")
	put(own, "log-level 4")
	spec.Annotations = map[string]string{criuConfig: own}
	put(filepath.Join(image, stdioFile), `{"1":"file[1b:ff]"}`)
	config, err := inherit(spec, image)
	if err != nil {
		t.Fatal(err)
	}
	defer config.Close()
	for _, want := range []string{"log-level 4 inherit-fd fd[1]:file[1b:ff]", ""} { // criu reads it twice
		b, err := os.ReadFile(spec.Annotations[criuConfig])
		if err != nil || strings.Join(strings.Fields(string(b)), " ") != want {
			t.Errorf("%q, %v", b, err)
		}
	}
	spec.Annotations = nil
	for _, bad := range []string{"{", `{"x":"y"}`, `{"1":"file[1:2]\nexec-cmd x"}`} {
		put(filepath.Join(image, stdioFile), bad)
		if _, err := inherit(spec, image); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestEmptyNamespaces(t *testing.T) {
	if _, err := emptyNamespaces([]string{"network"}); err != nil {
		t.Error(err)
	}
	if _, err := emptyNamespaces([]string{"pid"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
}
