package guest

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// shelf is a directory of modules, and what was loaded of it.
func shelf(t *testing.T) (dir string, loaded func(*Modules) *[]string) {
	t.Helper()
	dir = t.TempDir()
	for name, text := range map[string]string{
		"order":        "low.ko\nlow.ko with-dash.ko\nlow.ko high.ko\n",
		"aliases":      "rtnl-link-high high\nnf-[0-9]* with_dash\nbad-[ high\n",
		"low.ko":       "",
		"with-dash.ko": "",
		"high.ko":      "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, func(m *Modules) *[]string {
		var files []string
		m.insert = func(path string) error {
			files = append(files, filepath.Base(path))
			return nil
		}
		return &files
	}
}

func TestRequest(t *testing.T) {
	dir, record := shelf(t)
	for name, want := range map[string][]string{
		"high":           {"low.ko", "high.ko"},
		"rtnl-link-high": {"low.ko", "high.ko"},
		"with-dash":      {"low.ko", "with-dash.ko"},
		"with_dash":      {"low.ko", "with-dash.ko"},
		"nf-7":           {"low.ko", "with-dash.ko"},
		"nf-x":           nil,
		"none":           nil,
		"bad-[":          nil,
		"../high":        nil,
	} {
		m, err := NewLibrary(dir)
		if err != nil {
			t.Fatal(err)
		}
		got := record(m)
		if err := m.Request(name); err != nil || !slices.Equal(*got, want) {
			t.Errorf("%s: loaded %q, %v", name, *got, err)
		}
		if err := m.Request(name); err != nil || !slices.Equal(*got, want) {
			t.Errorf("%s again: loaded %q, %v", name, *got, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "high.ko")); err != nil {
		t.Errorf("what the host shares was removed: %v", err)
	}
}

// What is in the initramfs is memory, and given back.
func TestLoad(t *testing.T) {
	dir, record := shelf(t)
	m, err := NewModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := record(m)
	if err := errors.Join(m.Load("high"), m.Load("with_dash", "high")); err != nil {
		t.Fatal(err)
	}
	if want := []string{"low.ko", "high.ko", "with-dash.ko"}; !slices.Equal(*got, want) {
		t.Errorf("loaded %q", *got)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*.ko")); err != nil || len(left) > 0 {
		t.Errorf("left %q, %v", left, err)
	}
	if none, err := NewLibrary(t.TempDir()); err != nil || none.Request("high") != nil {
		t.Errorf("without any: %v", err)
	}
}
