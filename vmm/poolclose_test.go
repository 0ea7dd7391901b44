package vmm

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
)

// The record of a machine that could not be ended stays: without it no daemon
// would know of the machine.
func TestPoolKeepsRecords(t *testing.T) {
	p := &pool{dir: filepath.Join(t.TempDir(), "pool"), group: "kuasar-test-none"}
	machine := filepath.Join(p.dir, "one")
	if err := os.MkdirAll(machine, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := record.Write(filepath.Join(machine, moldFile), Process{Pid: 1}); err != nil {
		t.Fatal(err)
	}
	if err := p.close(); err == nil {
		t.Error("nothing is left?")
	}
	if _, err := os.Stat(filepath.Join(machine, moldFile)); err != nil {
		t.Error(err)
	}
	if err := os.RemoveAll(machine); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(p.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
}

// The same of a template's machine: here the record is a later release's.
func TestTemplatesKeepRecords(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "templates")
	file := filepath.Join(dir, "new-one", moldFile)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(`{"version": 99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := pidfd.NewReaper()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := OpenTemplates(t.Context(), dir, r); err == nil {
		t.Error("it is taken for nothing")
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}
