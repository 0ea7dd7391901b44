package vmm

import (
	"os"
	"path/filepath"
	"testing"
)

// A process that logs without end neither fills the host nor ends of that, and
// the beginning of its log can be read.
func TestLogIsBounded(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	p := &pod{vm: filepath.Join(t.TempDir(), vmDir)}
	if err := p.makeDir(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 2 {
			if err := p.removeDir(); err != nil {
				t.Error(err)
			}
		}
		if err := os.Remove(p.vm); err != nil {
			t.Errorf("something is left: %v", err)
		}
	})
	log, err := os.Create(p.log(roleVMM))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	r := reaper(t)
	var q *proc
	script := "echo first; head -c 4000000 /dev/zero; echo last; exit 7"
	err = launch(Command{Args: []string{"/bin/sh", "-c", script}}, "", log, func(a Process) (err error) {
		q, err = follow(r, a, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := q.wait(t.Context()); err != nil || q.exit.Status != 7 {
		t.Errorf("exit %+v, %v", q.exit, err)
	}
	b, err := os.ReadFile(log.Name())
	if err != nil || len(b) > dirSize || string(b[:6]) != "first\n" {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}
