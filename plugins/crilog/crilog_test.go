package crilog

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func lines(from, to int) string {
	var b strings.Builder
	for i := from; i < to; i++ {
		fmt.Fprintf(&b, "line %d\n", i)
	}
	return b.String()
}

func TestMissing(t *testing.T) {
	for name, c := range map[string]struct {
		logged, retained string
		whole, complete  bool
		want             string
		foreign          bool
	}{
		"nothing yet":                {"", "", true, true, "", false},
		"all logged":                 {lines(0, 9), lines(0, 9), true, true, "", false},
		"end lost":                   {lines(0, 5), lines(0, 9), true, true, lines(5, 9), false},
		"all lost":                   {"", lines(0, 9), true, true, lines(0, 9), false},
		"repetitive, exact":          {"y\ny\n", "y\ny\ny\n", true, true, "y\n", false},
		"half a line lost":           {lines(0, 5) + "par", lines(0, 5) + "partial", true, true, "tial", false},
		"old output forgotten":       {lines(0, 50), lines(30, 60), true, false, lines(50, 60), false},
		"log rotated":                {lines(40, 50), lines(30, 60), false, false, lines(50, 60), false},
		"log rotated, all logged":    {lines(40, 60), lines(30, 60), false, false, "", false},
		"repetitive, rotated":        {"y\ny\n", "y\ny\ny\ny\n", false, false, "", false},
		"carriage returns":           {"a\nb\n", "a\r\nb\r\nc\r\n", true, true, "c\n", false},
		"a log of something else":    {"other\n", lines(0, 3), true, true, "", true},
		"nothing in common, rotated": {"other\n", lines(0, 3), false, false, "", false},
		"none in the end of a log":   {"", lines(0, 3), false, true, lines(0, 3), false},
		"forgotten, and none in it":  {"", lines(0, 3), false, false, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := missing([]byte(c.logged), c.whole, []byte(c.retained), c.complete)
			if string(got) != c.want || ok == c.foreign {
				t.Fatalf("got %q, %t, want %q", got, ok, c.want)
			}
		})
	}
}

// log writes output as the CRI plugin would.
func log(t *testing.T, path, stream, output string) {
	t.Helper()
	var b bytes.Buffer
	format(&b, stream, []byte(output), time.Now())
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(b.Bytes()); err != nil {
		t.Fatal(err)
	}
}

func logged(t *testing.T, path, stream string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content(b, stream))
}

func TestComplete(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	log(t, path, "stdout", lines(0, 10))
	log(t, path, "stderr", "warning\n")
	long := strings.Repeat("x", 3*maxLine) + "\n"
	n, err := Complete(path,
		Retained{"stdout", []byte(lines(0, 12) + long + "unfin"), true},
		Retained{"stderr", []byte("warning\n"), true})
	if err != nil || n != len(lines(10, 12)+long+"unfin") {
		t.Fatal(n, err)
	}
	log(t, path, "stdout", "ished\n") // the CRI plugin goes on
	if got, want := logged(t, path, "stdout"), lines(0, 12)+long+"unfinished\n"; got != want {
		t.Fatalf("log is %d bytes, want %d", len(got), len(want))
	}
	if got := logged(t, path, "stderr"); got != "warning\n" {
		t.Fatalf("stderr is %q", got)
	}
}

func TestCompleteTwiceIsOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	log(t, path, "stdout", lines(0, 3))
	for range 2 {
		if _, err := Complete(path, Retained{"stdout", []byte(lines(0, 6)), true}); err != nil {
			t.Fatal(err)
		}
	}
	if got := logged(t, path, "stdout"); got != lines(0, 6) {
		t.Fatalf("log is %q", got)
	}
}

func TestCompleteAfterRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	log(t, path+".20260102-030405", "stdout", lines(0, 500))
	log(t, path, "stdout", lines(500, 501))
	if _, err := Complete(path, Retained{"stdout", []byte(lines(300, 600)), false}); err != nil {
		t.Fatal(err)
	}
	if got := logged(t, path, "stdout"); got != lines(500, 600) {
		t.Fatalf("log starts %.40q and has %d bytes", got, len(got))
	}
}

// The daemon can die within a write: the torn entry is written again, whole.
func TestCompleteAfterTornEntry(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	log(t, path, "stdout", lines(0, 3))
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("2026-01-02T03:04:05Z stdout F li"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := Complete(path, Retained{"stdout", []byte(lines(0, 5)), true}); err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(path)
	if got := string(content(b, "stdout")); got != lines(0, 5) {
		t.Fatalf("log is %q", got)
	}
}

// A container that writes much to stdout says on stderr why it ends.
func TestCompleteRareStream(t *testing.T) {
	chatter := lines(0, 100_000) // some MB of entries
	for name, before := range map[string]string{"none before": "", "some before": "warning\n"} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "0.log")
			log(t, path, "stderr", before)
			log(t, path, "stdout", chatter)
			n, err := Complete(path,
				Retained{"stdout", []byte(chatter[len(chatter)-1000:]), false},
				Retained{"stderr", []byte(before + "fatal: boom\n"), true})
			if err != nil || n != len("fatal: boom\n") {
				t.Errorf("completed by %d bytes, %v", n, err)
			}
			if got := logged(t, path, "stderr"); got != before+"fatal: boom\n" {
				t.Errorf("stderr is %q", got)
			}
		})
	}
}

// The kubelet compresses all rotated files but the newest.
func TestCompleteAfterCompression(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "0.log")
	plain := filepath.Join(dir, "plain")
	log(t, plain, "stderr", "warning\n")
	log(t, plain, "stdout", lines(0, 100_000))
	raw, err := os.ReadFile(plain)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err = z.Write(raw)
	if err := errors.Join(err, z.Close(), os.WriteFile(path+".20260102-030405.gz", b.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	log(t, path+".20260102-040405", "stdout", lines(0, 50_000))
	log(t, path, "stdout", "one\n")
	if n, err := Complete(path, Retained{"stderr", []byte("warning\nfatal: boom\n"), true}); err != nil || n != len("fatal: boom\n") {
		t.Errorf("completed by %d bytes, %v", n, err)
	}
}

func TestForeignLogIsLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	log(t, path, "stdout", "other\n")
	if n, err := Complete(path, Retained{"stdout", []byte(lines(0, 3)), true}); n != 0 || !errdefs.IsDataLoss(err) {
		t.Errorf("completed by %d bytes, %v", n, err)
	}
	if got := logged(t, path, "stdout"); got != "other\n" {
		t.Errorf("log is %q", got)
	}
}

func TestRemovedLogStaysRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	if n, err := Complete(path, Retained{"stdout", []byte("x\n"), true}); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Fatal("log was created")
	}
}

// FuzzComplete is for what a guest says that it kept, of whatever is in a log.
// Nothing of the log's whole entries is lost.
func FuzzComplete(f *testing.F) {
	f.Add("2026-01-02T03:04:05Z stdout F a\n2026-01-02T03:04:05Z stdout F b", []byte("a\nb\nc\n"), true)
	f.Add("", []byte("\r\n\r\n"), false)
	f.Add("no entry", []byte{0}, true)
	f.Fuzz(func(t *testing.T, entries string, kept []byte, complete bool) {
		path := filepath.Join(t.TempDir(), "0.log")
		if err := os.WriteFile(path, []byte(entries), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = Complete(path, Retained{"stdout", kept, complete})
		b, err := os.ReadFile(path)
		if whole := entries[:strings.LastIndexByte(entries, '\n')+1]; err != nil || !strings.HasPrefix(string(b), whole) {
			t.Fatalf("log is %q, %v", b, err)
		}
	})
}

func FuzzMissing(f *testing.F) {
	f.Add("a\nb\n", 2, 1)
	f.Fuzz(func(t *testing.T, output string, cut, forgotten int) {
		output = strings.ReplaceAll(output, "\r", "")
		if cut < 0 || forgotten < 0 || cut > len(output) || forgotten > cut {
			t.Skip("cuts lie outside the output")
		}
		// With all known the answer is exact.
		if got, _ := missing([]byte(output[:cut]), true, []byte(output), true); string(got) != output[cut:] {
			t.Fatalf("%q missing, want %q", got, output[cut:])
		}
		// With some forgotten it is an end of what was retained, never too long.
		got, _ := missing([]byte(output[:cut]), true, []byte(output[forgotten:]), false)
		if !strings.HasSuffix(output[cut:], string(got)) {
			t.Fatalf("%q missing, which is more than %q", got, output[cut:])
		}
	})
}
