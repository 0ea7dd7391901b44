package guest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

func TestUse(t *testing.T) {
	dir := t.TempDir()
	at := func(cpu string) string { return filepath.Join(dir, "devices/system/cpu", cpu, "online") }
	for cpu, online := range map[string]string{"cpu0": "", "cpu1": "1", "cpu2": "0", "cpu3": "", "cpu10": "1", "cpufreq": "0"} {
		if err := os.MkdirAll(filepath.Dir(at(cpu)), 0o700); err != nil {
			t.Fatal(err)
		}
		if online == "" { // the first one has no such file, nor those that are just plugged in
			continue
		}
		if err := os.WriteFile(at(cpu), []byte(online), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		want, n           int
		cpu1, cpu2, cpu10 string
	}{
		{3, 3, "1", "1", "0"},
		{5, 4, "1", "1", "1"},
		{1, 1, "0", "0", "0"},
		{2, 2, "1", "0", "0"},
	} {
		if n, err := use(dir, test.want); n != test.n || err != nil {
			t.Errorf("%d processors of %d, %v", n, test.want, err)
		}
		for cpu, want := range map[string]string{"cpu1": test.cpu1, "cpu2": test.cpu2, "cpu10": test.cpu10, "cpufreq": "0"} {
			if b, err := os.ReadFile(at(cpu)); string(b) != want || err != nil {
				t.Errorf("of %d: %s is %q, %v", test.want, cpu, b, err)
			}
		}
	}
}

func TestExpectMemory(t *testing.T) {
	if err := expectMemory(t.TempDir()); !errdefs.IsNotImplemented(err) {
		t.Errorf("a kernel without: %v", err)
	}
}
