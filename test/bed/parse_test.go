package bed

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseLog(t *testing.T) {
	const log = "2026-01-01T00:00:00Z stdout P one \n" +
		"2026-01-01T00:00:00Z stderr F other\n" +
		"2026-01-01T00:00:00Z stdout F line\n" +
		"2026-01-01T00:00:00Z stdout F \n"
	got, err := ParseLog(log, "stdout")
	if err != nil || got != "one line\n\n" {
		t.Errorf("stdout is %q, %v", got, err)
	}
	got, err = ParseLog(log, "stderr")
	if err != nil || got != "other\n" {
		t.Errorf("stderr is %q, %v", got, err)
	}
	for _, bad := range []string{"torn\n", "2026-01-01T00:00:00Z stdout X text\n", "2026-01-01T00:00:00Z stdout\n"} {
		if _, err := ParseLog(bad, "stdout"); err == nil {
			t.Errorf("ParseLog(%q) succeeds", bad)
		}
	}
}

func TestControllers(t *testing.T) {
	for options, want := range map[string]string{
		"rw,memory":                      "memory",
		"rw,cpu,cpuacct":                 "cpu,cpuacct",
		"rw,xattr,name=systemd":          "name=systemd",
		"rw,cpuset,clone_children":       "cpuset",
		"rw,release_agent=/x,name=other": "name=other",
	} {
		if got := controllers(options); got != want {
			t.Errorf("controllers(%q) = %q, want %q", options, got, want)
		}
	}
}

func TestJournal(t *testing.T) {
	b := &Bed{log: newJournal(nil)}
	b.log.add("before")
	mark := b.Mark()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	go b.log.follow(r)
	if _, err := w.WriteString("first\nbefore again\nunfinished"); err != nil {
		t.Fatal(err)
	}
	if line, err := b.AwaitLog(ctx, mark, "before"); err != nil || line != "before again" {
		t.Errorf("got %q, %v", line, err)
	}
	w.Close()
	if line, err := b.AwaitLog(ctx, mark, "unfinished"); err != nil || line != "unfinished" {
		t.Errorf("got %q, %v", line, err)
	}
	if got := b.Log(mark); got != "first\nbefore again\nunfinished" {
		t.Errorf("log after the mark is %q", got)
	}
	ended, end := context.WithCancel(ctx)
	end()
	if _, err := b.AwaitLog(ended, mark, "never"); err == nil {
		t.Error("a line that never comes is found")
	}
}

func TestJournalIsBounded(t *testing.T) {
	j := newJournal(nil)
	for range journalSize + 1 {
		j.add("line")
	}
	lines, total, _ := j.since(0)
	if len(lines) > journalSize || total != journalSize+1 {
		t.Errorf("%d lines of %d are kept", len(lines), total)
	}
}

func TestProcesses(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sleep", "100000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	find := func() (Process, bool) {
		all, err := Processes()
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(all, func(p Process) bool { return p.Pid == cmd.Process.Pid })
		if i < 0 {
			return Process{}, false
		}
		return all[i], true
	}
	p, ok := find()
	if !ok || p.Parent != os.Getpid() || !strings.HasSuffix(p.String(), "sleep 100000") && p.Name != "sleep" {
		t.Errorf("found %v, %+v", ok, p)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := AwaitExit(ended, cmd.Process.Pid); err == nil {
		t.Error("a process that runs has exited")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := AwaitExit(t.Context(), cmd.Process.Pid); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // killed
	if _, ok := find(); ok {
		t.Error("a process that has been waited for is still there")
	}
}
