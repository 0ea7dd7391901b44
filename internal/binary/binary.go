// Package binary finds this release's own programs.
package binary

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/containerd/errdefs"
)

// Find looks for a program beside this one, whose release it is then of, and
// after that in PATH. What is nowhere is errdefs.ErrNotFound.
func Find(name string) (string, error) {
	var beside string
	self, err := os.Executable()
	if err == nil {
		beside = filepath.Join(filepath.Dir(self), name)
		if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() {
			return beside, nil
		}
	}
	path, err := exec.LookPath(name)
	if err == nil {
		return filepath.Abs(path)
	}
	return "", fmt.Errorf("%s is neither at %s nor in PATH: %w", name, beside, errors.Join(err, errdefs.ErrNotFound))
}
