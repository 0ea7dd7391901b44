package qemu

import (
	"os"
	"testing"
)

// doomedProof is the first argument of the process that dies while it proves
// something with the program that is the second.
const doomedProof = "qemu-test-proof"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == doomedProof {
		doomed(os.Args[2])
	}
	os.Exit(m.Run())
}
