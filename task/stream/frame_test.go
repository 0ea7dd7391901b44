package stream

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/containerd/errdefs"
)

// A frame is of frameSize at most, whatever length a guest tells.
func TestFrameSize(t *testing.T) {
	for n, fits := range map[int]bool{1: true, frameSize - headSize: true, frameSize - headSize + 1: false, 0xffff: false} {
		b := binary.BigEndian.AppendUint16(nil, uint16(n))
		b = append(b, make([]byte, n+headSize)...) // and the end
		got := 0
		err := readFrames(bytes.NewReader(b), func(b []byte) error {
			got += len(b)
			return nil
		})
		if fits && (err != nil || got != n) {
			t.Errorf("of %d bytes: %d, %v", n, got, err)
		}
		if !fits && (!errdefs.IsOutOfRange(err) || got != 0) {
			t.Errorf("of %d bytes: %d, %v", n, got, err)
		}
	}
	if frameSize != 16<<10 {
		t.Errorf("a frame has %d bytes: guests of other releases know 16 KiB", frameSize)
	}
}
