package images

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

func TestTrueProgram(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the program is for amd64")
	}
	path := filepath.Join(t.TempDir(), "true")
	if err := os.WriteFile(path, []byte(trueProgram), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), path).CombinedOutput(); err != nil {
		t.Errorf("true: %v %s", err, out)
	}
}
