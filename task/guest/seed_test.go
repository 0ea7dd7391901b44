package guest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// TestSetupSeeds holds that the kernel gets the host's random bytes, counted as
// such, and makes new random numbers of them at once, before anything else is
// done: clones of one machine would have the same ones until then.
func TestSetupSeeds(t *testing.T) {
	g := New(nil)
	var requests []uint
	var info []byte
	g.random = func(request uint, arg []byte) error {
		if requests = append(requests, request); request == unix.RNDADDENTROPY {
			info = bytes.Clone(arg)
		}
		return nil
	}
	entropy := bytes.Repeat([]byte("entropy "), 8)
	if _, err := g.Setup(t.Context(), &api.SetupRequest{Entropy: entropy}); err != nil {
		t.Fatal(err)
	}
	if want := []uint{unix.RNDADDENTROPY, unix.RNDRESEEDCRNG}; !slices.Equal(requests, want) {
		t.Errorf("requests %x, want %x", requests, want)
	}
	want := binary.NativeEndian.AppendUint32(nil, 512) // bits
	want = append(binary.NativeEndian.AppendUint32(want, 64), entropy...)
	if !bytes.Equal(info, want) {
		t.Errorf("entropy %q, want %q", info, want)
	}

	bad := errors.New("no")
	g.random = func(uint, []byte) error { return bad }
	// What comes after that would fail of something else.
	_, err := g.Setup(t.Context(), &api.SetupRequest{Entropy: entropy, Sysctls: map[string]string{"no.such": "1"}})
	if !errors.Is(err, bad) {
		t.Errorf("error %v", err)
	}
}
