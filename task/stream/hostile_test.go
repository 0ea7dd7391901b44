package stream

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// framed makes frames of texts.
func framed(texts ...string) []byte {
	var b []byte
	for _, text := range texts {
		b = binary.BigEndian.AppendUint16(b, uint16(len(text)))
		b = append(b, text...)
	}
	return b
}

// FuzzFrames is for what a guest sends of output: all of it that is whole is
// taken, and nothing else.
func FuzzFrames(f *testing.F) {
	f.Add(framed("one", "two", ""))
	f.Add(framed("cut")[:3])
	f.Add(framed("no end"))
	f.Add(binary.BigEndian.AppendUint16(nil, dataSize+1))
	f.Add(framed(string(bytes.Repeat([]byte("x"), dataSize)), ""))
	f.Fuzz(func(t *testing.T, b []byte) {
		var got []byte
		err := readFrames(bytes.NewReader(b), func(data []byte) error {
			if len(data) == 0 || len(data) > dataSize {
				t.Errorf("a frame of %d bytes", len(data))
			}
			got = append(got, data...)
			return nil
		})
		want, whole := parse(b)
		if !bytes.Equal(got, want) || whole != (err == nil) {
			t.Errorf("%d bytes, want %d; %v", len(got), len(want), err)
		}
	})
}

// parse is what frames say, another way.
func parse(b []byte) (data []byte, whole bool) {
	for len(b) >= 2 {
		n := int(b[0])<<8 | int(b[1])
		if b = b[2:]; n == 0 {
			return data, true
		}
		if n > dataSize || n > len(b) {
			return data, false
		}
		data, b = append(data, b[:n]...), b[n:]
	}
	return data, false
}

// FuzzCarry is for a guest that answers anything to a request for a stream, over
// one connection after the other: the host's end gives up, and writes no more
// than it was sent.
func FuzzCarry(f *testing.F) {
	f.Add(append(answered(answerYes), framed("text", "")...))
	f.Add(answered(answerNo))
	f.Add(answered(7))
	f.Add([]byte{})
	f.Add(answered(answerYes))
	f.Add(append(answered(answerYes), 0xff, 0xff))
	f.Fuzz(func(t *testing.T, b []byte) {
		in, out, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		read := make(chan []byte)
		go func() {
			got, _ := io.ReadAll(in)
			read <- got
		}()
		s := &stream{name: "ns/c//stdout", kind: stdout, file: out, exited: t.Context(), left: lateTime}
		guest := &parrot{says: b, done: make(chan struct{})}
		err = s.carry(t.Context(), guest)
		out.Close()
		got := <-read
		var text []byte
		if len(b) >= answerSize && b[0] == answerYes {
			text, _ = parse(b[answerSize:])
		}
		if len(got) > guest.dials*len(text) {
			t.Errorf("%d bytes of %d connections that sent %d", len(got), guest.dials, len(text))
		}
		if err == nil && len(b) == 0 {
			t.Error("no error of a guest that says nothing")
		}
	})
}

// parrot says the same on each connection, and is gone after the second.
type parrot struct {
	says  []byte
	dials int
	done  chan struct{}
}

func (p *parrot) Done() <-chan struct{} { return p.done }

func (p *parrot) Stream(context.Context) (net.Conn, error) {
	if p.dials++; p.dials == 2 {
		close(p.done)
	}
	return speaker(p.says), nil
}

// answered is the beginning of a connection.
func answered(answer byte) []byte {
	return binary.BigEndian.AppendUint64([]byte{answer}, 5)
}

// speaker is a guest that says something whatever it hears.
func speaker(b []byte) net.Conn {
	near, far := net.Pipe()
	go func() { _, _ = io.Copy(io.Discard, far) }()
	go func() {
		_, _ = far.Write(b)
		far.Close()
	}()
	return near
}

// A guest that is asked for a stream and does not answer is not waited for.
func TestConnectIsBounded(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	near, far := net.Pipe()
	defer far.Close()
	go func() { _, _ = io.Copy(io.Discard, far) }()
	s := &stream{name: "ns/c//stdout", kind: stdout}
	if _, err := s.connect(ctx, func(context.Context) (net.Conn, error) { return near, nil }); err == nil {
		t.Error("no error")
	}
	if err := ctx.Err(); !errors.Is(err, context.DeadlineExceeded) {
		t.Error("it gave up before its time")
	}
}

// FuzzRequest is for who asks a guest for a stream.
func FuzzRequest(f *testing.F) {
	f.Add(asked("ns/c//stdout", 5))
	f.Add(asked("", 1<<63))
	f.Add(framed("cut"))
	f.Add([]byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		name, at, err := readRequest(bytes.NewReader(b))
		if err == nil && (len(name) > nameSize || !bytes.HasPrefix(b, asked(name, at))) {
			t.Errorf("%q from %d of %q", name, at, b)
		}
	})
}

func asked(name string, at uint64) []byte {
	return binary.BigEndian.AppendUint64(framed(name), at)
}
