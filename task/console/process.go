package console

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// process is a line of ps.
type process struct {
	pid, parent, uid int
	state            string
	memory           int // resident, KiB
	group, command   string
}

func ps(_ context.Context, _ []string, out io.Writer) error {
	all, err := processes("/proc")
	if err != nil {
		return err
	}
	t := table(out)
	row(t, "PID", "PARENT", "UID", "STATE", "KIB", "CGROUP", "COMMAND")
	for _, p := range all {
		row(t, strconv.Itoa(p.pid), strconv.Itoa(p.parent), strconv.Itoa(p.uid), p.state, strconv.Itoa(p.memory), p.group, p.command)
	}
	return t.Flush()
}

// processes reads those of a procfs, in the order of their ids.
func processes(proc string) ([]process, error) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, err
	}
	var all []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, ok := look(filepath.Join(proc, e.Name())); ok {
			p.pid = pid
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b process) int { return a.pid - b.pid })
	return all, nil
}

// look reads one process; it may have ended.
func look(dir string) (p process, ok bool) {
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return p, false
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		first, _, _ := strings.Cut(strings.TrimSpace(value), "\t")
		switch name {
		case "Name":
			p.command = "[" + strings.TrimSpace(value) + "]" // unless there is a command line
		case "State":
			p.state = first[:min(1, len(first))]
		case "PPid":
			p.parent, _ = strconv.Atoi(first)
		case "Uid":
			p.uid, _ = strconv.Atoi(first)
		case "VmRSS":
			p.memory, _ = strconv.Atoi(strings.TrimSuffix(first, " kB"))
		}
	}
	if line, err := os.ReadFile(filepath.Join(dir, "cmdline")); err == nil && len(line) > 0 {
		p.command = words(strings.Split(strings.TrimRight(string(line), "\x00"), "\x00"))
	}
	if group, err := os.ReadFile(filepath.Join(dir, "cgroup")); err == nil {
		_, p.group, _ = strings.Cut(strings.TrimSpace(string(group)), "::") // version 2's
	}
	return p, true
}

// words joins arguments so that they stay one line, and can be told apart.
func words(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = a
		if a == "" || strings.ContainsFunc(a, func(r rune) bool { return r <= ' ' || r == '"' || r == 0x7f }) {
			quoted[i] = fmt.Sprintf("%q", a)
		}
	}
	return strings.Join(quoted, " ")
}
