package main

import (
	"bytes"
	"fmt"
	"html"
	"strings"
)

// Sizes of a waterfall's picture in pixels; see plot.go for the width.
const (
	names, values = 250, 80 // names stand left, values right
	line, thick   = 20, 12
	titleHeight   = 60
	indent        = 12
)

// layers have colours that can be told from each other on white and on black.
var layers = []struct{ prefix, color, name string }{
	{"agent.", "#d9730d", "agent, in the guest or the worker"},
	{"qemu.", "#8b5cf6", "QEMU"},
	{"vmm.", "#2a7de1", "sandboxer"},
	{"sandbox.", "#2a7de1", ""},
	{"runc.", "#2a7de1", ""},
	{"task.", "#0f9d76", "task runtime"},
	{"", "#8a929c", "CRI and CNI"},
}

// cascade makes an SVG with a bar for each phase of each waterfall, which all
// have the same scale within one. It has no background: what is below it may be
// light or dark.
func cascade(all []waterfall) []byte {
	height := 40
	for _, w := range all {
		height += titleHeight + line*len(w.rows)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height, width, height)
	b.WriteString("<style>text{fill:#24292f}.rule{stroke:#d0d7de}@media(prefers-color-scheme:dark){text{fill:#e6edf3}.rule{stroke:#3d444d}}</style>\n")
	x := 12
	for _, l := range layers {
		if l.name == "" {
			continue
		}
		fmt.Fprintf(&b, `<rect x="%d" y="12" width="12" height="12" rx="2" fill="%s"/><text x="%d" y="22">%s</text>`+"\n", x, l.color, x+18, l.name)
		x += 44 + 6*len(l.name)
	}
	y := 40
	for _, w := range all {
		w.draw(&b, y)
		y += titleHeight + line*len(w.rows)
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

func (w waterfall) draw(b *bytes.Buffer, y int) {
	end := max(w.end(), 1)
	scale := float64(width-names-values) / end
	fmt.Fprintf(b, `<text x="12" y="%d" font-size="14" font-weight="bold">%s: %.0f ms</text>`+"\n", y+26, html.EscapeString(w.title), end)
	y += titleHeight - 10
	step := scaleStep(end)
	for t := 0.0; t <= end; t += step {
		x := names + t*scale
		fmt.Fprintf(b, `<line class="rule" x1="%.1f" y1="%d" x2="%.1f" y2="%d"/><text x="%.1f" y="%d" font-size="10" text-anchor="middle">%.0f ms</text>`+"\n", x, y, x, y+line*len(w.rows), x, y-3, t)
	}
	for i, r := range w.rows {
		top := y + i*line + (line-thick)/2
		fmt.Fprintf(b, `<text x="%d" y="%d">%s</text>`+"\n", 12+indent*r.depth, top+10, html.EscapeString(r.name))
		long := max(r.took*scale, 1.5)
		fmt.Fprintf(b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" rx="2" fill="%s"/>`+"\n", names+r.begin*scale, top, long, thick, r.color())
		fmt.Fprintf(b, `<text x="%.1f" y="%d" font-size="11">%.1f ms</text>`+"\n", names+r.begin*scale+long+5, top+10, r.took)
	}
}

func (r phase) color() string {
	for _, l := range layers {
		if strings.HasPrefix(r.name, l.prefix) {
			return l.color
		}
	}
	return ""
}

// scaleStep is 1, 2 or 5 times a power of ten, for ten marks at most.
func scaleStep(end float64) float64 {
	for unit := 1.0; ; unit *= 10 {
		for _, n := range []float64{1, 2, 5} {
			if end/(n*unit) <= 10 {
				return n * unit
			}
		}
	}
}
