package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/internal/binary"
	"github.com/containerd-kuasar/containerd-kuasar/runc"
)

// Sandboxers are all there are.
var Sandboxers = []string{"runc", "wasm", "vmm"}

// usual are those that need nothing that a node lacks.
var usual = []string{"runc", "wasm"}

// Grade says how well there is something.
type Grade string

// The grades.
const (
	OK      Grade = "ok"
	Limited Grade = "limited" // pods run, with less
	Missing Grade = "missing" // no pod runs
)

// Part is something that a sandboxer needs.
type Part struct {
	Name   string `json:"name"`
	Grade  Grade  `json:"state"`
	Detail string `json:"detail,omitempty"` // what there is, or why not and the remedy
}

// found makes a Part of what something was looked for with.
func found(name, detail string, err error) Part {
	if err != nil {
		return Part{name, Missing, brief(err)}
	}
	return Part{name, OK, detail}
}

// bad is a Part where a handler's options are wrong.
func bad(err error) []Part {
	if err == nil {
		return nil
	}
	return []Part{found("options", "", err)}
}

// limit makes what is missing a limit: nothing else depends on it.
func (p Part) limit(why string) Part {
	if p.Grade == Missing {
		p.Grade, p.Detail = Limited, why+": "+p.Detail
	}
	return p
}

// Readiness says whether pods of a sandboxer run here.
type Readiness struct {
	Sandboxer string `json:"sandboxer"`
	Handler   string `json:"handler,omitempty"` // runtime handler whose options apply; empty for the defaults
	Required  bool   `json:"required"`          // it counts for Report.OK
	OK        bool   `json:"ok"`
	Parts     []Part `json:"parts"`
}

// Report is what a node can run.
type Report struct {
	OK         bool        `json:"ok"`
	Sandboxers []Readiness `json:"sandboxers"`
}

// Check looks for what sandboxers need: those that are named, or all. Of all,
// those count that need nothing special and those that a runtime handler uses.
func (n *Node) Check(ctx context.Context, names []string) (Report, error) {
	for _, name := range names {
		if !slices.Contains(Sandboxers, name) {
			return Report{}, fmt.Errorf("unknown sandboxer %q, there are %s: %w", name, strings.Join(Sandboxers, ", "), errdefs.ErrInvalidArgument)
		}
	}
	r := Report{OK: true}
	for _, sandboxer := range Sandboxers {
		if len(names) > 0 && !slices.Contains(names, sandboxer) {
			continue
		}
		handlers := slices.DeleteFunc(slices.Clone(n.handlers), func(h handler) bool { return h.sandboxer != sandboxer })
		required := len(names) > 0 || len(handlers) > 0 || slices.Contains(usual, sandboxer)
		if len(handlers) == 0 {
			handlers = []handler{{sandboxer: sandboxer}}
		}
		for _, h := range handlers {
			one := Readiness{Sandboxer: sandboxer, Handler: h.name, Required: required, Parts: n.parts(ctx, h)}
			one.OK = !slices.ContainsFunc(one.Parts, func(p Part) bool { return p.Grade == Missing })
			r.OK = r.OK && (one.OK || !required)
			r.Sandboxers = append(r.Sandboxers, one)
		}
	}
	return r, nil
}

func (n *Node) parts(ctx context.Context, h handler) []Part {
	switch h.sandboxer {
	case "wasm":
		return n.wasm(ctx, h)
	case "vmm":
		return n.vmm(ctx, h)
	}
	_, err := runc.Parse(h.options, runc.Defaults())
	return append(n.host(ctx), bad(err)...)
}

// host is what pods need whose processes are this host's.
func (n *Node) host(ctx context.Context) []Part {
	path, err := n.text(pluginWorker, "path"), error(nil)
	if path == "" {
		path, err = binary.Find("kuasar-task")
	}
	if err != nil {
		err = fmt.Errorf("%w: install it beside the daemon", err)
	}
	return []Part{kernel(5, 10), exits(), groups(), found("kuasar-task", about(ctx, path), err)}
}

// aboutTime bounds what a program may take to say its version.
const aboutTime = 5 * time.Second

// about is a program's path, with what it says of its version.
func about(ctx context.Context, path string) string {
	if path == "" {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, aboutTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if err != nil || line == "" {
		return path
	}
	return path + ": " + line
}

// brief is an error without the classes at its end, which are for programs.
func brief(err error) string {
	text := strings.ReplaceAll(err.Error(), "\n", ": ")
	for _, class := range []error{errdefs.ErrUnavailable, errdefs.ErrNotFound, errdefs.ErrFailedPrecondition, errdefs.ErrInvalidArgument} {
		if errors.Is(err, class) {
			text = strings.TrimSuffix(text, ": "+class.Error())
		}
	}
	return text
}

// Print writes the report as a table.
func (r Report) Print(out io.Writer) error {
	t := newTable(out, "SANDBOXER", "HANDLER", "NEEDS", "STATE", "DETAIL")
	for _, s := range r.Sandboxers {
		for _, p := range s.Parts {
			t.row(s.Sandboxer, s.Handler, p.Name, string(p.Grade), p.Detail)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, s := range r.Sandboxers {
		what := "runs here"
		switch {
		case !s.OK && s.Required:
			what = "does not run here"
		case !s.OK:
			what = "does not run here, and no runtime handler uses it"
		}
		name := s.Sandboxer
		if s.Handler != "" {
			name += " (" + s.Handler + ")"
		}
		if _, err := fmt.Fprintf(out, "\n%s %s", name, what); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(out)
	return err
}
