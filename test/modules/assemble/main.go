// assemble makes modules of their text: assemble OUT SOURCE.wat...
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/bytecodealliance/wasmtime-go/v40"
)

func main() {
	if len(os.Args) < 3 {
		fail(fmt.Errorf("usage: assemble OUT SOURCE.wat..."))
	}
	for _, source := range os.Args[2:] {
		if err := assemble(os.Args[1], source); err != nil {
			fail(err)
		}
	}
}

func assemble(out, source string) error {
	text, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	module, err := wasmtime.Wat2Wasm(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", source, err)
	}
	name := strings.TrimSuffix(filepath.Base(source), ".wat") + ".wasm"
	return os.WriteFile(filepath.Join(out, name), module, 0o644)
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "assemble:", err)
	os.Exit(1)
}
