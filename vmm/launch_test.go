package vmm

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
)

// Doomed launches a process that would write to its stdout for ever.
func Doomed(netns string) int {
	err := launch(Command{Args: []string{"/bin/sh", "-c", "echo ran; while echo more; do :; done"}}, netns, os.Stdout, func(Process) error { return nil })
	if err != nil {
		os.Stdout.WriteString(err.Error())
	}
	return 0
}

func reaper(t *testing.T) *pidfd.Reaper {
	r, err := pidfd.NewReaper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func TestLaunch(t *testing.T) {
	r := reaper(t)
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	extra, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	var p *proc
	err = launch(Command{Args: []string{"/bin/sh", "-c", "readlink /proc/self/fd/3; ls -d /proc/self/fd/4; echo ${HOME:-none}; exit 7"}, Files: []*os.File{extra}}, "", in, func(q Process) error {
		state, err := os.ReadFile("/proc/" + decimal(uint32(q.Pid)) + "/stat")
		if err != nil || !strings.Contains(string(state), "(sh)") {
			t.Errorf("it runs already: %s, %v", state, err)
		}
		p, err = follow(r, q, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	in.Close()
	b, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(string(b), "\n"); lines[0] != os.DevNull || !strings.Contains(string(b), "cannot access") || !strings.Contains(string(b), "none") {
		t.Errorf("it says %q", b)
	}
	if err := p.wait(t.Context()); err != nil || p.exit.Status != 7 {
		t.Errorf("exit %+v, %v", p.exit, err)
	}
	if err := p.kill(t.Context()); err != nil {
		t.Errorf("kill what has ended: %v", err)
	}
}

// A process that is not admitted never runs.
func TestLaunchRefused(t *testing.T) {
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	refusal := errors.New("no")
	err = launch(Command{Args: []string{"/bin/echo", "ran"}}, "", in, func(q Process) error {
		pid = q.Pid
		return refusal
	})
	if !errors.Is(err, refusal) {
		t.Errorf("error %v", err)
	}
	in.Close()
	if b, err := io.ReadAll(out); len(b) > 0 || err != nil {
		t.Errorf("it says %q, %v", b, err)
	}
	if err := unix.Kill(pid, 0); err != unix.ESRCH {
		t.Errorf("process %d: %v", pid, err)
	}
}

func TestLaunchWithoutProgram(t *testing.T) {
	err := launch(Command{Args: []string{"/no/such/program"}}, "", os.Stdout, func(Process) error {
		t.Error("there is something to admit")
		return nil
	})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	err = launch(Command{Args: []string{"/bin/true"}}, "/no/such/netns", os.Stdout, nil)
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

// A daemon that dies while it launches leaves a process that was admitted and
// runs, or none.
func TestLaunchDies(t *testing.T) {
	for point, runs := range map[string]bool{"vmm/launch/fork": false, "vmm/launch/admit": false, "vmm/launch/go": true} {
		t.Run(point, func(t *testing.T) {
			out, in, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(os.Args[0], "")
			cmd.Stdout = in
			cmd.Env = append(os.Environ(), failpoint.Env+"="+point)
			if err := cmd.Run(); err == nil {
				t.Error("it did not die")
			}
			in.Close()
			// The pipe ends when nobody has it any more: when it was killed.
			b := make([]byte, 1024)
			n, _ := io.ReadFull(out, b[:4])
			if ran := string(b[:n]) == "ran\n"; ran != runs {
				t.Fatalf("it says %q", b[:n])
			}
			out.Close() // it dies of that
		})
	}
}
