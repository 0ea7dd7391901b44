package network

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
)

// TestMain is also a daemon that joins and parts, and dies where it is told.
func TestMain(m *testing.M) {
	if os.Getenv(failpoint.Env) != "" && len(os.Args) == 2 {
		os.Exit(doomed(os.Args[1]))
	}
	os.Exit(m.Run())
}

func doomed(netns string) int {
	found, err := Scan(netns)
	if err == nil {
		_, err = Join(netns, found[0], 1)
	}
	if err := errors.Join(err, Part(netns)); err != nil {
		os.Stderr.WriteString(err.Error())
	}
	return 1
}

func TestCrashes(t *testing.T) {
	for _, name := range failpoint.Names() {
		if !strings.HasPrefix(name, "network/") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			i, before := b.scan(t, 1)[0], b.dump(t)
			for _, again := range []bool{false, true} {
				b.crash(t, name)
				if again { // it takes over what is left
					tap := b.join(t, i)
					done := guest(tap, podMAC, podIP)
					b.exchange(t, podIP)
					tap.Close()
					<-done
				}
				if err := Part(b.pod); err != nil {
					t.Fatal(err)
				}
				if after := b.dump(t); after != before {
					t.Errorf("left behind:\n%s\nwas\n%s", after, before)
				}
			}
		})
	}
}

func (b bed) crash(t *testing.T, point string) {
	t.Helper()
	c := exec.Command(os.Args[0], b.pod)
	c.Env = append(os.Environ(), failpoint.Env+"="+point)
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("it did not die at %s: %v %s", point, err, out)
	}
}
