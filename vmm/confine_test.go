package vmm

import (
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A process has the capabilities that its command names and no way to others.
func TestConfine(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	r := reaper(t)
	for name, test := range map[string]struct {
		keep []int
		want string
	}{
		"none": {nil, "0000000000000000"},
		"two":  {[]int{unix.CAP_CHOWN, unix.CAP_SETPCAP}, "0000000000000101"},
	} {
		t.Run(name, func(t *testing.T) {
			out, in, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			var p *proc
			err = launch(Command{Args: []string{"/bin/cat", "/proc/self/status"}, Capabilities: test.keep}, "", in, func(q Process) error {
				p, err = follow(r, q, nil)
				return err
			})
			in.Close()
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(out)
			if err != nil {
				t.Fatal(err)
			}
			for _, line := range []string{"CapInh:\t0000000000000000", "CapPrm:\t" + test.want, "CapEff:\t" + test.want, "CapBnd:\t" + test.want, "CapAmb:\t0000000000000000", "NoNewPrivs:\t1"} {
				if !strings.Contains(string(b), line+"\n") {
					t.Errorf("%q is not in %s", line, b)
				}
			}
			if err := p.wait(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}
