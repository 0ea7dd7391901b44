package host

import (
	"errors"
	"testing"
)

// BenchmarkPin is what a pod's namespaces cost.
func BenchmarkPin(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		if err := Pin(dir, Namespaces{IPC: true, UTS: true, Hostname: "pod"}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := Unpin(dir); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkUnpin(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		b.StopTimer()
		if err := Pin(dir, Namespaces{IPC: true, UTS: true, Hostname: "pod"}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := Unpin(dir); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMakeFiles(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		if err := errors.Join(MakeFiles(dir, config(nil, nil), nil), MakeShm(dir, config(nil, nil))); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := RemoveShm(dir); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
