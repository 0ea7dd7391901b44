package cgroup

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// tree makes files below a temporary directory.
func tree(t *testing.T, files ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, f := range files {
		path := filepath.Join(root, f)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestStay(t *testing.T) {
	for name, c := range map[string]struct {
		self, file string
		want       bool
	}{
		"v2":               {"0::/a/b\n", "a/b/cgroup.procs", true},
		"v1":               {"12:perf_event:/x\n3:cpu,cpuacct:/a\n", "cpu,cpuacct/a/cgroup.procs", true},
		"named":            {"1:name=systemd:/s\n", "systemd/s/cgroup.procs", true},
		"colon in path":    {"0::/a:b\n", "a:b/cgroup.procs", true},
		"not mounted":      {"0::/a\n", "other/cgroup.procs", false},
		"nothing readable": {"x\n\n", "cgroup.procs", false},
	} {
		root := tree(t, c.file)
		self := filepath.Join(t.TempDir(), "self")
		if err := os.WriteFile(self, []byte(c.self), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := stay(self, root); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
		b, err := os.ReadFile(filepath.Join(root, c.file))
		if err != nil || (string(b) == "0") != c.want {
			t.Errorf("%s: wrote %q, %v", name, b, err)
		}
	}
	if stay("/nonexistent", "/") {
		t.Error("stayed nowhere")
	}
}

func TestWarmEnds(t *testing.T) {
	var w warmth
	for range 3 { // each starts anew or goes on
		w.until(time.Now().Add(3 * beat))
		w.until(time.Now())
		deadline := time.NewTimer(10 * time.Second)
		tick := time.NewTicker(beat)
		for w.busy() {
			select {
			case <-tick.C:
			case <-deadline.C:
				t.Fatal("it does not end")
			}
		}
	}
}

func (w *warmth) busy() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.running
}

// BenchmarkMove measures what Warm is for: idle is the move of a process after
// a while without any, warm one after Warm.
func BenchmarkMove(b *testing.B) {
	if os.Geteuid() != 0 || !stay("/proc/self/cgroup", "/sys/fs/cgroup") {
		b.Skip("missing: root, or a writable cgroup of our own")
	}
	for name, d := range map[string]time.Duration{"idle": 0, "warm": time.Minute} {
		b.Run(name, func(b *testing.B) {
			var w warmth
			if d > 0 {
				w.until(time.Now().Add(d))
			}
			t := time.NewTicker(60 * time.Millisecond)
			defer t.Stop()
			var total time.Duration
			for b.Loop() {
				<-t.C
				start := time.Now()
				stay("/proc/self/cgroup", "/sys/fs/cgroup")
				total += time.Since(start)
			}
			w.mu.Lock()
			w.end = time.Now()
			w.mu.Unlock()
			b.ReportMetric(float64(total.Microseconds())/float64(b.N), "us/move")
		})
	}
}
