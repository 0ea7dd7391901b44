package cache

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
)

// Key says what an entry was made of and for.
type Key struct {
	Module  string // its digest, from Digest
	Engine  string
	Version string // of the engine, and of its settings that the compiler minds
}

// name is the entry's. Compiled code is for the processor that it was compiled
// on, too: a node may come back as another machine with the same disk.
func (k Key) name() string {
	id := sha256.New()
	for _, part := range []string{k.Module, k.Engine, k.Version, runtime.GOARCH, features()} {
		fmt.Fprintf(id, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(id.Sum(nil))
}

// Digest is what a Key has of a module.
func Digest(module io.Reader) (string, error) {
	id := sha256.New()
	if _, err := io.Copy(id, module); err != nil {
		return "", fmt.Errorf("read module: %w", err)
	}
	return hex.EncodeToString(id.Sum(nil)), nil
}

// features are those of the processor, as proc(5) has them.
var features = sync.OnceValue(func() string {
	info, _ := os.ReadFile("/proc/cpuinfo") // without it all processors of a kind are taken as equal
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			if name = strings.TrimSpace(name); name == "flags" || name == "Features" {
				return strings.TrimSpace(value)
			}
		}
	}
	return ""
})
