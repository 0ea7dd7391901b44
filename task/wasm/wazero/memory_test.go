package wazero

import "testing"

func TestMemory(t *testing.T) {
	const max = 1 << 20
	m := allocate(0, max)
	defer m.Free()
	first := m.Reallocate(1)
	if len(first) != 1 {
		t.Fatalf("%d bytes, want 1", len(first))
	}
	first[0] = 'x'
	for _, size := range []uint64{page, page + 1, max} {
		b := m.Reallocate(size)
		if uint64(len(b)) != size || cap(b) != len(b) {
			t.Fatalf("%d bytes with room for %d, want %d", len(b), cap(b), size)
		}
		b[size-1] = 'y' // it is there
		if &b[0] != &first[0] || b[0] != 'x' {
			t.Errorf("at %d bytes the memory has moved or changed", size)
		}
	}
	if b := m.Reallocate(max + 1); b != nil {
		t.Errorf("%d bytes of %d", len(b), max)
	}
}

func TestMemoryOfNothing(t *testing.T) {
	m := allocate(0, 0)
	defer m.Free()
	if b := m.Reallocate(0); b == nil || len(b) != 0 {
		t.Errorf("no memory is %v", b)
	}
}
