// Package record keeps small versioned JSON files that survive a crash of the
// daemon at any instant: a reader sees the old one or the new one, whole.
//
// Records live on the state file system and describe live kernel objects
// (processes, mounts, namespaces), which no power failure survives. So they
// are renamed into place without fsync, and carry the boot id: a record of
// another boot is history.
package record

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
)

// Version of the envelope. A higher one on disk is from a newer release.
const Version = 1

type envelope struct {
	Version int             `json:"version"`
	Boot    string          `json:"boot"`
	Data    json.RawMessage `json:"data"`
}

// Boot is the kernel's id of this boot (random_boot_id(4)).
var Boot = sync.OnceValue(func() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
})

// Write replaces the record at path with v.
func Write(path string, v any) error {
	if Boot() == "" {
		return fmt.Errorf("write record %s: the boot has no id: is /proc mounted?: %w", path, errdefs.ErrUnavailable)
	}
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode record %s: %w", path, err)
	}
	b, err := json.Marshal(envelope{Version: Version, Boot: Boot(), Data: data})
	if err != nil {
		return fmt.Errorf("encode record %s: %w", path, err)
	}
	tmp := Temporary(path)
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return errors.Join(fmt.Errorf("write record: %w", err), os.Remove(tmp))
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}

// Temporary is what Write leaves of a record at path if it dies.
func Temporary(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp")
}

// Read fills v from the record at path and says whether it was written during
// this boot. A missing record is errdefs.ErrNotFound, a broken one
// errdefs.ErrDataLoss, one of a newer release errdefs.ErrFailedPrecondition.
func Read(path string, v any) (sameBoot bool, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("read record %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return false, fmt.Errorf("read record: %w", err)
	}
	var e envelope
	if err := json.Unmarshal(b, &e); err != nil {
		return false, damaged(path, err)
	}
	if e.Version > Version {
		return false, fmt.Errorf("record %s has version %d, this release knows up to %d: start the newer release again: %w",
			path, e.Version, Version, errdefs.ErrFailedPrecondition)
	}
	if e.Version < 1 || e.Boot == "" {
		return false, damaged(path, errors.New("it has no version or no boot id"))
	}
	if err := json.Unmarshal(e.Data, v); err != nil {
		return false, damaged(path, err)
	}
	return e.Boot == Boot(), nil
}

func damaged(path string, err error) error {
	return fmt.Errorf("record %s is damaged (%w): put a good one back: %w", path, err, errdefs.ErrDataLoss)
}
