package vmm

import (
	"io"
	"os"
	"path/filepath"
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
	private := filepath.Join(t.TempDir(), "private") // where another user may not go, only be
	if err := os.Mkdir(private, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		keep []int
		as   user
		want string
		who  string // Uid, as Gid, of /proc/self/status, and Groups
	}{
		"none":    {nil, user{}, "0000000000000000", "0 "},
		"two":     {[]int{unix.CAP_CHOWN, unix.CAP_SETPCAP}, user{}, "0000000000000101", "0 "},
		"another": {nil, user{firstUser, []uint32{12}}, "0000000000000000", "1879048192 12 "},
	} {
		t.Run(name, func(t *testing.T) {
			out, in, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			var p *proc
			err = launch(Command{Args: []string{"/bin/cat", "/proc/self/status"}, Capabilities: test.keep, Dir: private, as: test.as}, "", in, func(q Process) error {
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
			id, groups, _ := strings.Cut(test.who, " ")
			all := strings.Repeat("\t"+id, 4)
			for _, line := range []string{"Uid:" + all, "Gid:" + all} {
				if !strings.Contains(string(b), line+"\n") {
					t.Errorf("%q is not in %s", line, b)
				}
			}
			if test.as.id != 0 && !strings.Contains(string(b), "Groups:\t"+groups+"\n") {
				t.Errorf("groups %q are not in %s", groups, b)
			}
			if err := p.wait(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}
