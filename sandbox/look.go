package sandbox

import (
	"encoding/json"
	"path/filepath"
)

// Recorded is what the records of a sandbox say.
type Recorded struct {
	Spec    Spec
	Runtime string          // type of the handler
	State   State           // as it was recorded last; what became of it by itself the daemon knows
	Backend json.RawMessage // what the backend saved; it may be empty

	// Dead records are of another boot of the host: nothing of the sandbox
	// lives. The rest may be empty then.
	Dead bool
}

// Look reads the records of the sandbox whose directory is dir, beside a daemon
// that may run and change them: it is for those who only look. No sandbox is
// errdefs.ErrNotFound.
func Look(dir string) (Recorded, error) {
	b := newBox(filepath.Base(dir), dir, Recovering)
	r, err := b.load()
	if err != nil {
		return Recorded{}, err
	}
	return Recorded{Spec: r.Spec, Runtime: r.Runtime, State: r.State, Backend: r.Backend, Dead: r.dead}, nil
}
