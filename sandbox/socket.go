package sandbox

import (
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"
)

// socketLimit is the size of sun_path in unix(7). A zero ends the path.
const socketLimit = 108

// Socket is the path of a unix socket in the sandbox's directory. A backend
// asks for it in Create, so that one that is too long is said there, and not
// by a "bind: invalid argument" of some other process.
func (s Spec) Socket(name string) (string, error) {
	path := filepath.Join(s.Dir, name)
	if len(path) >= socketLimit {
		return "", fmt.Errorf("socket path %s is too long: with the zero at its end it has %d bytes of at most %d: set a shorter `state` in containerd's configuration: %w",
			path, len(path)+1, socketLimit, errdefs.ErrFailedPrecondition)
	}
	return path, nil
}
