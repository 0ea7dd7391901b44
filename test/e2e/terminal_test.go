package e2e

import (
	"io"
	"os"
	"testing"
)

// openTerminal opens the slave of a pty as a program's terminal.
func openTerminal(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// readTerminal reads until the last process that has the slave closes it,
// which a master sees as EIO.
func readTerminal(master io.Reader) string {
	out, _ := io.ReadAll(master)
	return string(out)
}
