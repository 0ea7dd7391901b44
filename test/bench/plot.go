package main

import (
	"bytes"
	"fmt"
	"html"
)

// Sizes of the picture in pixels.
const (
	width, left, right = 860, 330, 190 // names stand left, values right
	row, bar           = 54, 16
)

// draw makes an SVG with two bars for each comparison, the longer one filling
// the room, and a mark where the target is.
func draw(comparisons []comparison) []byte {
	var b bytes.Buffer
	height := row*len(comparisons) + 50
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="13">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", width, height)
	legend := []struct{ color, name string }{{ours, "containerd-kuasar"}, {stock, "stock runc handler"}, {target, "target"}}
	for i, l := range legend {
		x := left + i*150
		fmt.Fprintf(&b, `<rect x="%d" y="14" width="12" height="12" fill="%s"/><text x="%d" y="25">%s</text>`+"\n", x, l.color, x+18, l.name)
	}
	for i, c := range comparisons {
		c.draw(&b, 40+i*row)
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

const ours, stock, target = "#2a7de1", "#b8bec6", "#d9480f"

func (c comparison) draw(b *bytes.Buffer, y int) {
	room := float64(width - left - right)
	goal := c.Target * c.Stock.P50
	scale := room / max(c.Ours.P50, c.Stock.P50, goal)
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", left-12, y+bar+5, html.EscapeString(c.Name))
	for i, side := range []struct {
		color string
		value float64
		note  string
	}{
		{ours, c.Ours.P50, fmt.Sprintf(" (%.2fx)", c.Ratio)},
		{stock, c.Stock.P50, ""},
	} {
		top := y + i*(bar+2)
		fmt.Fprintf(b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", left, top, side.value*scale, bar, side.color)
		fmt.Fprintf(b, `<text x="%.1f" y="%d">%.1f %s%s</text>`+"\n", float64(left)+side.value*scale+6, top+13, side.value, c.Unit, side.note)
	}
	if c.Target == 0 {
		return
	}
	fmt.Fprintf(b, `<rect x="%.1f" y="%d" width="2" height="%d" fill="%s"/>`+"\n", float64(left)+goal*scale, y-2, 2*bar+6, target)
}
