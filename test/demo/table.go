package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// row is what became of one handler.
type row struct {
	handler handler
	missing string          // what it needs and is not there
	times   []time.Duration // of the steps that ran; negative if there was nothing to do
	err     error           // of the step after them
	helpers map[string]int  // processes that came with the pod, by kind
}

// table writes the rows, with one column for each step.
func table(w io.Writer, rows []row) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	header := []string{"handler"}
	for _, s := range steps {
		header = append(header, s.name)
	}
	line(t, append(header, "helper processes", "")...)
	for _, r := range rows {
		line(t, append(r.cells(), "")...)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range rows {
		if _, err := fmt.Fprintf(w, "\n%s: %s", strings.TrimSpace(r.handler.name+" "+r.handler.engine), r.handler.kind); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(w)
	return err
}

func (r row) cells() []string {
	cells := []string{strings.TrimSpace(r.handler.name + " " + r.handler.engine)}
	for i := range steps {
		switch {
		case r.missing != "":
			cells = append(cells, "-")
		case i < len(r.times) && r.times[i] < 0:
			cells = append(cells, "-")
		case i < len(r.times):
			cells = append(cells, fmt.Sprintf("%d ms", r.times[i].Milliseconds()))
		case i == len(r.times):
			cells = append(cells, "FAILED")
		default:
			cells = append(cells, "-")
		}
	}
	var helpers []string
	for _, kind := range slices.Sorted(maps.Keys(r.helpers)) {
		if n := r.helpers[kind]; n > 0 {
			helpers = append(helpers, fmt.Sprintf("%d %s", n, kind))
		}
	}
	return append(cells, strings.Join(helpers, ", "))
}

// line writes one line; its error is that of the writer's Flush.
func line(w io.Writer, cells ...string) {
	_, _ = fmt.Fprintln(w, strings.Join(cells, "\t"))
}
