package critest

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// Table is the results of several handlers side by side, the one that is
// compared with first.
type Table struct {
	Handlers []string
	Results  []Results // one per handler
}

// names are the cases of all handlers, sorted.
func (t Table) names() []string {
	names := make(map[string]bool)
	for _, results := range t.Results {
		for name := range results {
			names[name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// Differences lists what is not as it should be: a case fails although it is
// not excluded, is skipped where the first handler passes, or passes although
// it is excluded.
func (t Table) Differences(excluded Exclusions) []string {
	var all []string
	for i, handler := range t.Handlers {
		for _, name := range t.names() {
			r := t.Results[i][name]
			_, known := excluded[handler][name]
			switch {
			case known && r.Passed():
				all = append(all, fmt.Sprintf("%s: %s: excluded, but it passes", handler, name))
			case known, r.Passed(), r.Skipped() && !t.Results[0][name].Passed():
			default:
				all = append(all, fmt.Sprintf("%s: %s: %s: %s", handler, cmp.Or(r.State, "absent"), name, firstLine(r.Message)))
			}
		}
		for name := range excluded[handler] {
			if !slices.Contains(t.names(), name) {
				all = append(all, fmt.Sprintf("%s: %s: excluded, but there is no such case", handler, name))
			}
		}
	}
	slices.Sort(all)
	return all
}

// groups counts the cases by the first words of their names.
func (t Table) groups() map[string][]string {
	groups := make(map[string][]string)
	for _, name := range t.names() {
		group := "Others"
		for _, g := range groupNames {
			if strings.HasPrefix(name, g) {
				group = g
				break
			}
		}
		groups[group] = append(groups[group], name)
	}
	return groups
}

// groupNames are critest's, the longest first where one begins another.
var groupNames = []string{
	"AppArmor", "Container Mount Propagation", "Container Mount Readonly", "Container OOM", "Container", "Idempotence",
	"Image Consistency", "Image Identifier Consistency", "Image Manager", "Multiple Containers", "Networking",
	"PodSandbox", "Runtime info", "SELinux", "Security Context", "Streaming",
}

// Write writes the table as markdown.
func (t Table) Write(w io.Writer, excluded Exclusions) error {
	p := &printer{w: w}
	p.line("| | " + strings.Join(t.Handlers, " | ") + " |")
	p.line("|---|" + strings.Repeat("---|", len(t.Handlers)))
	groups := t.groups()
	for _, group := range slices.Sorted(maps.Keys(groups)) {
		t.row(p, group, groups[group])
	}
	t.row(p, "**all**", t.names())
	t.causes(p, excluded)
	return p.err
}

// row counts the named cases of every handler.
func (t Table) row(p *printer, title string, names []string) {
	line := "| " + title + " |"
	for _, results := range t.Results {
		var passed, failed, skipped int
		for _, name := range names {
			switch r := results[name]; {
			case r.Passed():
				passed++
			case r.Skipped():
				skipped++
			default:
				failed++
			}
		}
		line += fmt.Sprintf(" %d passed", passed)
		if failed > 0 {
			line += fmt.Sprintf(", **%d failed**", failed)
		}
		if skipped > 0 {
			line += fmt.Sprintf(", %d skipped", skipped)
		}
		line += " |"
	}
	p.line(line)
}

// causes names every case that did not pass, why, and with which handlers.
func (t Table) causes(p *printer, excluded Exclusions) {
	handlers := make(map[string][]string)     // by cause and name
	names := make(map[string]map[string]bool) // by cause
	for i, results := range t.Results {
		for _, name := range t.names() {
			r := results[name]
			if r.Passed() {
				continue
			}
			title := cmp.Or(r.State, "absent") + ": " + cmp.Or(excluded[t.Handlers[i]][name], firstLine(r.Message))
			handlers[title+name] = append(handlers[title+name], t.Handlers[i])
			if names[title] == nil {
				names[title] = make(map[string]bool)
			}
			names[title][name] = true
		}
	}
	for _, title := range slices.Sorted(maps.Keys(names)) {
		p.line("")
		p.line("## " + strings.ToUpper(title[:1]) + title[1:])
		p.line("")
		for _, name := range slices.Sorted(maps.Keys(names[title])) {
			p.line("- " + name + " (" + strings.Join(handlers[title+name], ", ") + ")")
		}
	}
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// printer keeps the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(text string) {
	if p.err == nil {
		_, p.err = fmt.Fprintln(p.w, text)
	}
}
