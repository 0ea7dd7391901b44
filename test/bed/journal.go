package bed

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
)

// journalSize bounds the lines that are kept, in lines: enough for the last
// minutes of a daemon at debug level.
const journalSize = 20000

// journal keeps what the daemon logs, over restarts, and tells when a line
// comes.
type journal struct {
	each func(line string)

	mu    sync.Mutex
	lines []string
	total int           // lines ever written
	grown chan struct{} // closed and replaced at each line
}

func newJournal(each func(string)) *journal {
	if each == nil {
		each = func(string) {}
	}
	return &journal{each: each, grown: make(chan struct{})}
}

// follow reads lines until the writers are gone.
func (j *journal) follow(r io.ReadCloser) {
	defer r.Close()
	for reader := bufio.NewReader(r); ; {
		line, err := reader.ReadString('\n')
		if line != "" {
			j.add(strings.TrimSuffix(line, "\n"))
		}
		if err != nil {
			return
		}
	}
}

func (j *journal) add(line string) {
	j.each(line)
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.lines) == journalSize {
		j.lines = append(j.lines[:0], j.lines[journalSize/2:]...)
	}
	j.lines = append(j.lines, line)
	j.total++
	close(j.grown)
	j.grown = make(chan struct{})
}

// since returns the lines after the first n ever written, the number written
// by now, and a channel that closes at the next.
func (j *journal) since(n int) ([]string, int, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	kept := min(j.total-n, len(j.lines))
	lines := append([]string(nil), j.lines[len(j.lines)-kept:]...)
	return lines, j.total, j.grown
}

// Mark is a point in the daemon's log.
type Mark int

// Mark returns the present end of the daemon's log.
func (b *Bed) Mark() Mark {
	_, total, _ := b.log.since(0)
	return Mark(total)
}

// Log returns what the daemon has logged after the mark, as far as it is
// kept.
func (b *Bed) Log(after Mark) string {
	lines, _, _ := b.log.since(int(after))
	return strings.Join(lines, "\n")
}

// AwaitLog waits for a line after the mark that contains text, and returns it.
func (b *Bed) AwaitLog(ctx context.Context, after Mark, text string) (string, error) {
	return b.AwaitNth(ctx, after, text, 1)
}

// AwaitNth is AwaitLog for the nth such line, from 1.
func (b *Bed) AwaitNth(ctx context.Context, after Mark, text string, nth int) (string, error) {
	for n := int(after); ; {
		lines, total, grown := b.log.since(n)
		for _, line := range lines {
			if !strings.Contains(line, text) {
				continue
			}
			if nth--; nth == 0 {
				return line, nil
			}
		}
		n = total
		select {
		case <-grown:
		case <-ctx.Done():
			return "", fmt.Errorf("wait for %q in the daemon's log: %w", text, ctx.Err())
		}
	}
}
