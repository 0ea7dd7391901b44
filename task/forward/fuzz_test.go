package forward

import (
	"encoding/binary"
	"io"
	"testing"
)

// FuzzAsk is for what a guest answers: one byte counts, and what follows is the
// stream's.
func FuzzAsk(f *testing.F) {
	f.Add([]byte{connected}, uint16(80))
	f.Add([]byte{connected, 'H', 'T', 'T', 'P'}, uint16(65535))
	f.Add([]byte{refused}, uint16(0))
	f.Add([]byte{0xff}, uint16(1))
	f.Add([]byte{}, uint16(22))
	f.Fuzz(func(t *testing.T, answer []byte, port uint16) {
		ours, theirs := pair(t) // net.Pipe takes no deadline once its other end is closed
		asked := make(chan uint16, 1)
		go func() {
			defer theirs.Close()
			var b [2]byte
			_, _ = io.ReadFull(theirs, b[:])
			asked <- binary.BigEndian.Uint16(b[:])
			_, _ = theirs.Write(answer)
		}()
		err := ask(ours, port)
		if got := <-asked; got != port {
			t.Errorf("asked for port %d, want %d", got, port)
		}
		if is := len(answer) > 0 && answer[0] == connected; is != (err == nil) {
			t.Errorf("%x: %v", answer, err)
		}
		if err == nil {
			if rest, err := io.ReadAll(ours); err != nil || string(rest) != string(answer[1:]) {
				t.Errorf("the stream is %x, %v", rest, err)
			}
		}
		ours.Close()
	})
}
