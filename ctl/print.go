package ctl

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// table lines columns up.
type table struct{ *tabwriter.Writer }

func newTable(out io.Writer, heads ...string) table {
	t := table{tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)}
	t.row(heads...)
	return t
}

// row writes a line. What is empty is a dash, so that there are always as many
// columns. Errors come with Flush.
func (t table) row(cells ...string) {
	for i, c := range cells {
		cells[i] = cmp.Or(clean(c), "-")
	}
	fmt.Fprintln(t, strings.Join(cells, "\t"))
}

// clean makes a text of others safe to show in a line: it may be made to change
// the terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// Safe returns a writer to f for what a guest says. What would change a terminal
// is replaced, if f is one.
func Safe(f *os.File) io.Writer {
	if !Terminal(f) {
		return f
	}
	return &safe{out: f}
}

// Terminal says whether f is one.
func Terminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// safe lets lines and tabs pass, and cleans all else.
type safe struct {
	out  io.Writer
	rest []byte // of a character that was cut
}

// Write implements io.Writer.
func (s *safe) Write(b []byte) (int, error) {
	text := append(s.rest, b...)
	var clear strings.Builder
	for len(text) > 0 && (utf8.FullRune(text) || len(text) >= utf8.UTFMax) {
		r, size := utf8.DecodeRune(text)
		if r != '\n' && r != '\t' && !unicode.IsPrint(r) {
			r = unicode.ReplacementChar
		}
		clear.WriteRune(r)
		text = text[size:]
	}
	s.rest = append([]byte(nil), text...)
	if _, err := io.WriteString(s.out, clear.String()); err != nil {
		return 0, err
	}
	return len(b), nil
}
