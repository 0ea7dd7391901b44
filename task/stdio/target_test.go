package stdio

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]target{
		"":                                  {},
		"/run/a fifo?#%zz":                  {kind: byPath, path: "/run/a fifo?#%zz"},
		"/run/../run//x":                    {kind: byPath, path: "/run/x"},
		"fifo:///run/x":                     {kind: byPath, path: "/run/x"},
		"file:///var/log/a%20b":             {kind: logFile, path: "/var/log/a b"},
		"binary:///bin/logger":              {kind: program, path: "/bin/logger"},
		"binary-v2:///bin/logger?":          {kind: program, path: "/bin/logger", strict: true},
		"binary:///bin/l?b=2&a&&c=x%20y&b=": {kind: program, path: "/bin/l", args: []string{"b", "2", "a", "", "c", "x y", "b", ""}},
		"binary:///bin/l?a=%zz":             {kind: program, path: "/bin/l", args: []string{"a", "%zz"}},
	} {
		got, err := parse(in)
		if err != nil || got.kind != want.kind || got.path != want.path || got.strict != want.strict || !slices.Equal(got.args, want.args) {
			t.Errorf("%q: got %+v, %v, want %+v", in, got, err, want)
		}
	}
}

func TestSpool(t *testing.T) {
	for in, want := range map[string]string{"": "", "/run/x/out": "/run/x/.out.fifo"} {
		if got := Spool(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"", "/a", "fifo:///a", "file:///a", "binary:///a?b=c&d", "binary-v2:///a", "http://x/y", "file://%zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parse(s)
		if err != nil || got.kind == nowhere {
			return
		}
		if !filepath.IsAbs(got.path) || got.path != filepath.Clean(got.path) {
			t.Errorf("%q: path %q", s, got.path)
		}
		if len(got.args) > 2*(strings.Count(s, "&")+1) {
			t.Errorf("%q: %d arguments", s, len(got.args))
		}
	})
}
