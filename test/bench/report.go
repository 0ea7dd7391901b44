package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// report collects comparisons and prints each as it comes.
type report struct {
	Comparisons []comparison `json:"comparisons"`
	Notes       []string     `json:"notes,omitempty"` // what has nothing to compare with

	waterfalls []waterfall
}

// comparison is one measured thing, ours against the stock's.
type comparison struct {
	Name   string  `json:"name"`
	Unit   string  `json:"unit"`
	Ours   sample  `json:"ours"`
	Stock  sample  `json:"stock"`
	Ratio  float64 `json:"ratio"`            // of the medians
	Target float64 `json:"target,omitempty"` // 0 for a part of what has one
	More   bool    `json:"moreIsBetter"`
	Met    bool    `json:"met,omitempty"`
}

type sample struct {
	N   int     `json:"n"`
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

func (r *report) durations(name string, ours, stock []time.Duration, target float64) {
	r.compare(name, "ms", milliseconds(ours), milliseconds(stock), target)
}

// starts compares whole starts and their parts.
func (r *report) starts(name string, ours, stock *starts, target float64) {
	r.compare(name, "ms", milliseconds(ours.whole), milliseconds(stock.whole), target)
	for i, call := range []string{"RunPodSandbox", "CreateContainer", "StartContainer"} {
		r.compare("- of which "+call, "ms", milliseconds(ours.calls[i]), milliseconds(stock.calls[i]), 0)
	}
}

// rates is compare where more is better.
func (r *report) rates(name, unit string, ours, stock []float64, target float64) {
	r.add(comparison{Name: name, Unit: unit, Ours: summarize(ours), Stock: summarize(stock), Target: target, More: true})
}

func (r *report) compare(name, unit string, ours, stock []float64, target float64) {
	r.add(comparison{Name: name, Unit: unit, Ours: summarize(ours), Stock: summarize(stock), Target: target})
}

func (r *report) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	r.Notes = append(r.Notes, text)
	fmt.Println(text)
}

func (r *report) add(c comparison) {
	c.Ratio = c.Ours.P50 / c.Stock.P50
	if c.Target != 0 {
		c.Met = c.Ratio <= c.Target
		if c.More {
			c.Met = c.Ratio >= c.Target
		}
	}
	r.Comparisons = append(r.Comparisons, c)
	fmt.Println(c)
}

func (c comparison) String() string {
	line := fmt.Sprintf("%-48s ours %8.1f (p99 %8.1f)  stock %8.1f (p99 %8.1f) %-4s  %.3fx",
		c.Name, c.Ours.P50, c.Ours.P99, c.Stock.P50, c.Stock.P99, c.Unit, c.Ratio)
	switch {
	case c.Target == 0:
		return line
	case c.Met:
		return fmt.Sprintf("%s  target %gx met", line, c.Target)
	default:
		return fmt.Sprintf("%s  target %gx missed", line, c.Target)
	}
}

func summarize(values []float64) sample {
	sorted := slices.Sorted(slices.Values(values))
	return sample{N: len(sorted), P50: percentile(sorted, 0.5), P99: percentile(sorted, 0.99)}
}

// percentile is the nearest rank's value.
func percentile(sorted []float64, p float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	return sorted[max(int(math.Ceil(p*float64(len(sorted))))-1, 0)]
}

func milliseconds(durations []time.Duration) []float64 {
	out := make([]float64, len(durations))
	for i, d := range durations {
		out[i] = float64(d) / float64(time.Millisecond)
	}
	return out
}

// phases adds what the time of a start goes into.
func (r *report) phases(w waterfall) {
	r.waterfalls = append(r.waterfalls, w)
	fmt.Println(w)
}

// write saves what there is of the report: dir/bench.json and dir/bench.svg, and
// dir/phases.svg.
func (r *report) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if len(r.waterfalls) > 0 {
		if err := os.WriteFile(filepath.Join(dir, "phases.svg"), cascade(r.waterfalls), 0o644); err != nil {
			return err
		}
	}
	if len(r.Comparisons)+len(r.Notes) == 0 {
		return nil
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "bench.json"), b, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "bench.svg"), draw(r.Comparisons), 0o644)
}
