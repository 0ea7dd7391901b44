package stdio

import (
	"io"
	"os"
	"os/exec"
	"strconv"
	"testing"
)

const benchSize = 64 << 20

// flood is a process that writes benchSize bytes.
func flood(out *os.File) *exec.Cmd {
	const block = 64 << 10
	cmd := exec.Command("dd", "if=/dev/zero", "bs="+strconv.Itoa(block), "count="+strconv.Itoa(benchSize/block), "status=none")
	cmd.Stdout = out
	return cmd
}

// drain reads to the end as containerd's CRI plugin does, by 32 KiB.
func drain(b *testing.B, path string) <-chan int64 {
	done := make(chan int64, 1)
	go func() {
		f, err := os.Open(path)
		if err != nil {
			b.Error(err)
			close(done)
			return
		}
		defer f.Close()
		n, err := io.CopyBuffer(onlyWriter{io.Discard}, onlyReader{f}, make([]byte, 32<<10))
		if err != nil {
			b.Error(err)
		}
		done <- n
	}()
	return done
}

// They hide what io.Copy would rather use.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

func check(b *testing.B, n int64) {
	b.Helper()
	if n != benchSize {
		b.Fatalf("%d bytes arrived of %d", n, benchSize)
	}
}

// BenchmarkOutput is what a container has here.
func BenchmarkOutput(b *testing.B) {
	for name, retain := range map[string]bool{"direct": false, "retained": true} {
		b.Run(name, func(b *testing.B) {
			h := host(b)
			b.SetBytes(benchSize)
			for b.Loop() {
				path := mkfifo(b, "out")
				done := drain(b, path)
				sio, err := h.Open(b.Context(), Config{Stdout: path, Retain: retain})
				if err != nil {
					b.Fatal(err)
				}
				_, out, _ := sio.Files()
				cmd := flood(out)
				if err := cmd.Start(); err != nil {
					b.Fatal(err)
				}
				sio.Started()
				wait(b, cmd)
				exited(b, sio)
				check(b, <-done)
				if err := sio.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkShim is what containerd's shim does: a pipe, and a copy of 4 KiB at
// a time.
func BenchmarkShim(b *testing.B) {
	b.SetBytes(benchSize)
	for b.Loop() {
		path := mkfifo(b, "out")
		done := drain(b, path)
		fifo, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			b.Fatal(err)
		}
		r, w, err := os.Pipe()
		if err != nil {
			b.Fatal(err)
		}
		cmd := flood(w)
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		w.Close()
		if _, err := io.CopyBuffer(onlyWriter{fifo}, onlyReader{r}, make([]byte, 4096)); err != nil {
			b.Fatal(err)
		}
		fifo.Close()
		r.Close()
		wait(b, cmd)
		check(b, <-done)
	}
}

func BenchmarkLogFile(b *testing.B) {
	h := host(b)
	b.SetBytes(benchSize)
	for b.Loop() {
		log := b.TempDir() + "/log"
		sio, err := h.Open(b.Context(), Config{Stdout: "file://" + log})
		if err != nil {
			b.Fatal(err)
		}
		_, out, _ := sio.Files()
		cmd := flood(out)
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		sio.Started()
		wait(b, cmd)
		exited(b, sio)
		info, err := os.Stat(log)
		if err != nil {
			b.Fatal(err)
		}
		check(b, info.Size())
		if err := sio.Close(); err != nil {
			b.Fatal(err)
		}
		_ = os.Remove(log)
	}
}

func BenchmarkTerminal(b *testing.B) {
	h := host(b)
	b.SetBytes(benchSize)
	for b.Loop() {
		path := mkfifo(b, "out")
		done := drain(b, path)
		sio, err := h.Open(b.Context(), Config{Stdout: path, Terminal: true})
		if err != nil {
			b.Fatal(err)
		}
		master, slave := pty(b)
		cmd := flood(slave)
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		slave.Close()
		if err := sio.Attach(master); err != nil {
			b.Fatal(err)
		}
		wait(b, cmd)
		exited(b, sio)
		check(b, <-done)
		if err := sio.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpen is stdio's part of a container's life.
func BenchmarkOpen(b *testing.B) {
	for name, retain := range map[string]bool{"direct": false, "retained": true} {
		b.Run(name, func(b *testing.B) {
			h := host(b)
			in, out, errs := mkfifo(b, "in"), mkfifo(b, "out"), mkfifo(b, "err")
			attach(b, out)
			attach(b, errs)
			b.ReportAllocs()
			for b.Loop() {
				sio, err := h.Open(b.Context(), Config{Stdin: in, Stdout: out, Stderr: errs, Retain: retain})
				if err != nil {
					b.Fatal(err)
				}
				sio.Started()
				if err := sio.Exited(b.Context()); err != nil {
					b.Fatal(err)
				}
				if err := sio.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
