package vmm

import (
	"bytes"
	"testing"
)

// TestIdentity holds that each guest gets random bytes of its own, 64 of them.
func TestIdentity(t *testing.T) {
	one, err := (&pod{}).identity()
	if err != nil {
		t.Fatal(err)
	}
	other, err := (&pod{}).identity()
	if err != nil {
		t.Fatal(err)
	}
	if len(one.Entropy) != 64 || bytes.Equal(one.Entropy, other.Entropy) {
		t.Errorf("entropy %x and %x", one.Entropy, other.Entropy)
	}
}
