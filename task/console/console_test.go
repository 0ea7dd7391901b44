package console

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestOpens(t *testing.T) {
	c := New([]byte("secret"))
	for key, want := range map[string]bool{"secret": true, "": false, "secre": false, "secrets": false} {
		if c.Opens([]byte(key)) != want {
			t.Errorf("key %q: %t", key, !want)
		}
	}
	if New(nil).Opens(nil) {
		t.Error("a console without a key opens")
	}
}

func output(t *testing.T, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if err := run(t.Context(), args, &out); err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return out.String()
}

func TestRun(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("text\x00\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	self := strconv.Itoa(os.Getpid())
	for name, test := range map[string]struct {
		args []string
		want []string
	}{
		"help":   {[]string{"help"}, []string{"cat FILE...", "ps"}},
		"cat":    {[]string{"cat", file, file}, []string{"text\x00\ntext\x00\n"}},
		"procfs": {[]string{"cat", "/proc/version"}, []string{"Linux version"}},
		"ls":     {[]string{"ls", filepath.Dir(file)}, []string{"-rw-r-----", "0:0", "file"}},
		"links":  {[]string{"ls", "/proc/self/ns"}, []string{"net -> net:["}},
		"ps":     {[]string{"ps"}, []string{"\n" + self + " ", "console.test"}},
		"mounts": {[]string{"mounts"}, []string{"MOUNTPOINT", "/proc"}},
		"net":    {[]string{"net"}, []string{"lo", "127.0.0.1/8", "ROUTE", "NEIGHBOUR"}},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "ls" && os.Getuid() != 0 {
				t.Skip("needs root: its files are 0:0")
			}
			out := output(t, test.args...)
			for _, want := range test.want {
				if !strings.Contains(out, want) {
					t.Errorf("%q is not in %q", want, out)
				}
			}
		})
	}
}

func TestRefused(t *testing.T) {
	for name, test := range map[string]struct {
		args  []string
		class func(error) bool
	}{
		"nothing":      {nil, errdefs.IsInvalidArgument},
		"unknown":      {[]string{"sh", "-c", "true"}, errdefs.IsInvalidArgument},
		"too few":      {[]string{"cat"}, errdefs.IsInvalidArgument},
		"too many":     {[]string{"ps", "-a"}, errdefs.IsInvalidArgument},
		"option":       {[]string{"dmesg", "-w"}, errdefs.IsInvalidArgument},
		"no file":      {[]string{"cat", "/nonexistent"}, errdefs.IsNotFound},
		"no directory": {[]string{"ls", "/nonexistent"}, errdefs.IsNotFound},
		"directory":    {[]string{"cat", "/"}, errdefs.IsInvalidArgument},
		"device":       {[]string{"cat", "/dev/zero"}, errdefs.IsInvalidArgument},
	} {
		if err := run(t.Context(), test.args, &bytes.Buffer{}); !test.class(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What nobody waits for any more ends.
func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := run(ctx, []string{"cat", "/proc/version"}, &bytes.Buffer{}); err == nil {
		t.Error("no error")
	}
}

func TestKernelLine(t *testing.T) {
	for record, want := range map[string]string{
		"6,339,5140900,-;NET: Registered\n SUBSYSTEM=net\n": "[    5.140900] NET: Registered\n",
		"6,1,0,c,more;a;b\n": "[    0.000000] a;b\n",
		"nonsense":           "\n",
		";x":                 "x\n",
	} {
		if got := kernelLine(record); got != want {
			t.Errorf("%q: %q", record, got)
		}
	}
}

func TestWords(t *testing.T) {
	if got := words([]string{"sh", "-c", "a\nb", "", "x"}); got != `sh -c "a\nb" "" x` {
		t.Error(got)
	}
}

func TestProcesses(t *testing.T) {
	proc := t.TempDir()
	for name, text := range map[string]string{
		"10/status":  "Name:\tsh\nState:\tS (sleeping)\nPPid:\t1\nUid:\t1000\t1000\t1000\t1000\nVmRSS:\t     740 kB\n",
		"10/cmdline": "sh\x00-c\x00exit\x00",
		"10/cgroup":  "0::/kuasar/c1\n",
		"9/status":   "Name:\tkthreadd\nState:\tI (idle)\nPPid:\t0\nUid:\t0\t0\t0\t0\n",
		"9/cmdline":  "",
		"11/cmdline": "gone\x00",
		"version":    "x",
	} {
		path := filepath.Join(proc, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := processes(proc)
	if err != nil || len(got) != 2 {
		t.Fatalf("%+v, %v", got, err)
	}
	if want := (process{9, 0, 0, "I", 0, "", "[kthreadd]"}); got[0] != want {
		t.Errorf("%+v", got[0])
	}
	if want := (process{10, 1, 1000, "S", 740, "/kuasar/c1", "sh -c exit"}); got[1] != want {
		t.Errorf("%+v", got[1])
	}
}
