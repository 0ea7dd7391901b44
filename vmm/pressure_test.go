package vmm

import (
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestEnough(t *testing.T) {
	const meminfo = "MemTotal:        8388608 kB\nMemFree:          1024 kB\nMemAvailable:    1048576 kB\n"
	if err := enoughOf(strings.NewReader(meminfo), 128<<20); err != nil {
		t.Errorf("1024 MiB of 8192 are available for 128: %v", err)
	}
	if err := enoughOf(strings.NewReader(meminfo), 256<<20); !errdefs.IsResourceExhausted(err) {
		t.Errorf("1024 MiB of 8192 are available for 256: %v", err)
	}
	if err := enoughOf(strings.NewReader("MemAvailable: much"), 0); err == nil {
		t.Error("nonsense was read")
	}
}

func TestPause(t *testing.T) {
	var p pause
	now := time.Unix(1e9, 0)
	for i, want := range []time.Duration{1, 2, 4, 5, 5} {
		if first := p.begin(now, time.Second, 5*time.Second); first != (i == 0) {
			t.Errorf("pause %d: first: %t", i, first)
		}
		if got := p.until.Sub(now); got != want*time.Second {
			t.Errorf("pause %d: %v, want %d s", i, got, want)
		}
		now = p.until.Add(time.Second)
	}
	now = now.Add(time.Minute)
	if first := p.begin(now, time.Second, 5*time.Second); !first || p.until.Sub(now) != time.Second {
		t.Errorf("much later: %t, %v", first, p.until.Sub(now))
	}
}
