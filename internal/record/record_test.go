package record

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

type value struct {
	Name  string
	Count int
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.json")
	for _, want := range []value{{"a", 1}, {"", 0}, {strings.Repeat("x", 1<<20), -1}} {
		if err := Write(path, want); err != nil {
			t.Fatal(err)
		}
		var got value
		same, err := Read(path, &got)
		if err != nil || !same || got != want {
			t.Errorf("same boot %t, error %v, %.40v", same, err, got)
		}
	}
	if left, _ := filepath.Glob(Temporary(path)); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestOfAnotherBoot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.json")
	if err := os.WriteFile(path, []byte(`{"version":1,"boot":"another","data":{"Name":"a"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	var got value
	same, err := Read(path, &got)
	if err != nil || same || got.Name != "a" {
		t.Errorf("same boot %t, error %v, %v", same, err, got)
	}
}

func TestBadRecords(t *testing.T) {
	for name, test := range map[string]struct {
		content string
		is      func(error) bool
	}{
		"empty":          {"", errdefs.IsDataLoss},
		"half-written":   {`{"version":1,"boot":"b","da`, errdefs.IsDataLoss},
		"no envelope":    {`{"Name":"a"}`, errdefs.IsDataLoss},
		"null":           {`null`, errdefs.IsDataLoss},
		"without a boot": {`{"version":1,"data":{}}`, errdefs.IsDataLoss},
		"without data":   {`{"version":1,"boot":"b"}`, errdefs.IsDataLoss},
		"other data":     {`{"version":1,"boot":"b","data":{"Count":"many"}}`, errdefs.IsDataLoss},
		"a list":         {`[]`, errdefs.IsDataLoss},
		"binary":         {"\x00\x01", errdefs.IsDataLoss},
		"of the future":  {`{"version":2,"data":{}}`, errdefs.IsFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "r.json")
			if err := os.WriteFile(path, []byte(test.content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Read(path, &value{})
			if !test.is(err) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestMissingAndUnreadable(t *testing.T) {
	dir := t.TempDir()
	if _, err := Read(filepath.Join(dir, "none"), &value{}); !errdefs.IsNotFound(err) {
		t.Errorf("missing: %v", err)
	}
	if _, err := Read(dir, &value{}); err == nil || errdefs.IsNotFound(err) {
		t.Errorf("a directory: %v", err)
	}
}

// A writer that fails leaves the record as it was.
func TestFailedWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "r.json")
	if err := Write(path, value{Name: "old"}); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, func() {}); err == nil {
		t.Error("a function is encoded")
	}
	if err := os.Mkdir(Temporary(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, value{Name: "new"}); err == nil {
		t.Error("written over a directory")
	}
	var got value
	if _, err := Read(path, &got); err != nil || got.Name != "old" {
		t.Errorf("got %v, %v", got, err)
	}
	if err := Write(filepath.Join(dir, "none", "r.json"), got); err == nil {
		t.Error("written into a directory that there is not")
	}
}

// What a crash leaves of a writer is in nobody's way.
func TestHalfWrittenTemporary(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.json")
	if err := os.WriteFile(Temporary(path), []byte(`{"ver`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, value{Name: "a"}); err != nil {
		t.Fatal(err)
	}
	var got value
	if _, err := Read(path, &got); err != nil || got.Name != "a" {
		t.Errorf("got %v, %v", got, err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"version":1,"boot":"b","data":{"Name":"a","Count":1}}`))
	f.Add([]byte(`{"version":-1,"boot":0,"data":[]}`))
	path := filepath.Join(f.TempDir(), "r.json")
	f.Fuzz(func(t *testing.T, content []byte) {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		var got value
		if same, err := Read(path, &got); same && err != nil {
			t.Errorf("an error and yet of this boot: %v", err)
		}
	})
}
