package failpoint

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
)

var here = New("failpoint/test/here")

// TestMain is the process that dies, if it is told where.
func TestMain(m *testing.M) {
	if os.Getenv(Env) != "" {
		for range 3 {
			here.Hit()
			_, _ = os.Stdout.WriteString("alive ")
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestHit(t *testing.T) {
	for target, want := range map[string]struct {
		out  string
		dies bool
	}{
		"failpoint/test/here":      {"", true},
		"failpoint/test/here:1":    {"", true},
		"failpoint/test/here:3":    {"alive alive ", true},
		"failpoint/test/here:4":    {"alive alive alive ", false},
		"failpoint/test/here:many": {"", true},
		"failpoint/test/here:0":    {"", true},
		"failpoint/test/elsewhere": {"alive alive alive ", false},
	} {
		t.Run(target, func(t *testing.T) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), Env+"="+target)
			out, err := cmd.Output()
			status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if !ok {
				t.Fatal(err)
			}
			if died := status.Signaled() && status.Signal() == syscall.SIGKILL; died != want.dies || string(out) != want.out {
				t.Errorf("it died: %t, after %q", died, out)
			}
		})
	}
}

func TestNames(t *testing.T) {
	New("failpoint/test/another")
	if names := Names(); !slices.IsSorted(names) || !slices.Contains(names, "failpoint/test/another") {
		t.Errorf("names %q", names)
	}
	defer func() {
		if r := recover(); r == nil || !strings.Contains(r.(string), "failpoint/test/here") {
			t.Errorf("a name that is taken: %v", r)
		}
	}()
	New("failpoint/test/here")
}
