package stream

import (
	"slices"
)

const (
	// window is how much output waits to be delivered before its process has to.
	window = 128 << 10

	// keep is how much delivered output is retained, if it is to be. It covers
	// what a daemon can have in hand; see package relay.
	keep = 128 << 10

	// step is how much is forgotten at once.
	step = 64 << 10
)

// backlog is the end of an output, in memory.
type backlog struct {
	data   []byte
	start  uint64 // of data, from the beginning of the output
	done   uint64 // what is before was delivered
	keep   int    // of what was delivered
	forgot bool   // something
}

func (b *backlog) end() uint64 { return b.start + uint64(len(b.data)) }

// room is how much may be added.
func (b *backlog) room() int { return max(0, window-int(b.end()-b.done)) }

// grow lets fill write up to n bytes behind the others, and adds as many as it
// returns.
func (b *backlog) grow(n int, fill func([]byte) int) int {
	b.data = slices.Grow(b.data, n)
	end := len(b.data)
	got := fill(b.data[end : end+n])
	b.data = b.data[:end+got]
	return got
}

// from copies what is at an offset and behind it.
func (b *backlog) from(offset uint64, into []byte) int {
	return copy(into, b.data[offset-b.start:])
}

// delivered takes note that everything before an offset is, and forgets what
// need not be kept.
func (b *backlog) delivered(offset uint64) {
	b.done = max(b.done, min(offset, b.end()))
	extra := len(b.data) - b.keep - int(b.end()-b.done)
	switch {
	case extra <= 0:
		return
	case extra == len(b.data):
		b.data = nil // most output is little and seldom
	case extra < step:
		return
	default:
		b.data = append(b.data[:0], b.data[extra:]...)
	}
	b.start += uint64(extra)
	b.forgot = true
}

// all copies what there is. complete says that it is all there ever was.
func (b *backlog) all() (data []byte, complete bool) {
	return slices.Clone(b.data), !b.forgot
}
