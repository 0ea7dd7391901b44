package ctl

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	// nameWidth is of the column with phases, at most.
	nameWidth = 48

	// defaultWidth is of what is no terminal, in characters; minBar of the bars
	// where a terminal is narrow.
	defaultWidth, minBar = 110, 16

	// numbersWidth is of the columns of times with their spaces.
	numbersWidth = 24
)

// Width is how many characters a line of f has.
func Width(f *os.File) int {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 {
		return defaultWidth
	}
	return int(size.Col)
}

// Waterfall writes a call: a line for each phase with when it began and how long
// it took in milliseconds, and a bar for both.
func (c Call) Waterfall(out io.Writer, width int) error {
	if len(c.Spans) == 0 {
		return nil
	}
	b := bufio.NewWriter(out)
	root, depths := c.Spans[0], c.Depths()
	fmt.Fprintf(b, "%s  %s  %s  %.1f ms  trace %s\n", root.Begin.Format(time.TimeOnly),
		short(root.Name), clean(cmp.Or(c.Pod, c.Sandbox[:min(len(c.Sandbox), shortID)], "-")), ms(root.Took()), root.Trace)
	names := 0
	for i, s := range c.Spans {
		names = max(names, 2*depths[i]+utf8.RuneCountInString(short(s.Name)))
	}
	names = min(names, nameWidth)
	bar := max(width-names-numbersWidth, minBar)
	for i, s := range c.Spans {
		name := clip(strings.Repeat("  ", depths[i])+short(s.Name), names)
		fmt.Fprintf(b, "%-*s %10.1f %10.1f  %s\n", names, name, ms(s.Begin.Sub(root.Begin)), ms(s.Took()), strings.TrimRight(s.bar(root, bar), " "))
	}
	for _, s := range c.Spans {
		if s.Error != "" && s.Ours {
			fmt.Fprintf(b, "%s: %s\n", short(s.Name), clean(s.Error))
		}
	}
	fmt.Fprintln(b)
	return b.Flush()
}

// bar is at least one mark, within the width.
func (s Span) bar(root Span, width int) string {
	whole := max(root.Took(), 1)
	at := func(t time.Time) int {
		return int(min(max(t.Sub(root.Begin), 0), whole) * time.Duration(width) / whole)
	}
	from := min(at(s.Begin), width-1)
	to := max(at(s.End), from+1)
	mark := "█"
	if s.Took()*time.Duration(width) < whole {
		mark = "▏" // less than a character's time
	}
	return strings.Repeat(" ", from) + strings.Repeat(mark, to-from)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// short leaves a gRPC method's package out.
func short(name string) string {
	if service, method, ok := strings.Cut(name, "/"); ok {
		return clean(service[strings.LastIndex(service, ".")+1:] + "/" + method)
	}
	return clean(name)
}

// clip cuts a text that is too long.
func clip(s string, width int) string {
	if runes := []rune(s); len(runes) > width {
		return string(runes[:width-1]) + "…"
	}
	return s
}
