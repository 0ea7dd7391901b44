package epoll

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func pipe(t *testing.T) (r, w int) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	return fds[0], fds[1]
}

func TestWaitReportsKeysOfReadyDescriptors(t *testing.T) {
	p, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	const key = 0xfedcba9876543210 // all 64 bits survive
	r, w := pipe(t)
	if err := p.Add(r, unix.EPOLLIN, key); err != nil {
		t.Fatal(err)
	}
	got := make(chan []Event)
	go func() {
		events, err := p.Wait(make([]Event, 0, 4))
		if err != nil {
			t.Error(err)
		}
		got <- events
	}()
	if _, err := unix.Write(w, []byte("x")); err != nil {
		t.Fatal(err)
	}
	events := <-got
	if len(events) != 1 || events[0].Key != key || events[0].Events&unix.EPOLLIN == 0 {
		t.Fatalf("got %+v", events)
	}
}

func TestWaitReturnsAllThatIsReadyInBatches(t *testing.T) {
	p, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	const n = 100
	for i := range n {
		r, w := pipe(t)
		if err := p.Add(r, unix.EPOLLIN|unix.EPOLLET, uint64(i)); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(w, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[uint64]bool{}
	buf := make([]Event, 0, 7)
	for len(seen) < n {
		events, err := p.Wait(buf)
		if err != nil {
			t.Fatal(err)
		}
		if len(events) > cap(buf) {
			t.Fatalf("%d events in a buffer of %d", len(events), cap(buf))
		}
		for _, e := range events {
			if seen[e.Key] {
				t.Fatalf("key %d twice", e.Key)
			}
			seen[e.Key] = true
		}
	}
}

func TestCloseEndsWait(t *testing.T) {
	p, err := New()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		_, err := p.Wait(make([]Event, 0, 1))
		done <- err
	}()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Fatalf("got %v, want os.ErrClosed", err)
	}
	if err := p.Add(0, unix.EPOLLIN, 0); !errors.Is(err, os.ErrClosed) {
		t.Fatalf("Add after Close: got %v, want os.ErrClosed", err)
	}
}

func TestModifyAndRemove(t *testing.T) {
	p, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	r1, w1 := pipe(t)
	r2, w2 := pipe(t)
	if err := p.Add(r1, unix.EPOLLIN, 1); err != nil {
		t.Fatal(err)
	}
	if err := p.Add(r2, 0, 2); err != nil {
		t.Fatal(err)
	}
	for _, w := range []int{w1, w2} {
		if _, err := unix.Write(w, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Remove(r1); err != nil {
		t.Fatal(err)
	}
	if err := p.Modify(r2, unix.EPOLLIN, 3); err != nil {
		t.Fatal(err)
	}
	events, err := p.Wait(make([]Event, 0, 4))
	if err != nil {
		t.Fatal(err)
	}
	if len(events) != 1 || events[0].Key != 3 {
		t.Fatalf("got %+v, want key 3 alone", events)
	}
}
