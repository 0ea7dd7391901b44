package tasks

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// entry appends one to a container's log, as the CRI plugin does.
func (r *rig) entry(id, text string) {
	r.Helper()
	f, err := os.OpenFile(r.logPath(id), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	r.must(err)
	defer f.Close()
	_, err = f.WriteString("2026-01-02T03:04:05Z stdout F " + text + "\n")
	r.must(err)
}

func (r *rig) logPath(id string) string { return filepath.Join(r.dir, id+".log") }

// logged is what a container's log has.
func (r *rig) logged(id string) string {
	r.Helper()
	raw, err := os.ReadFile(r.logPath(id))
	r.must(err)
	var texts []string
	for line := range strings.Lines(string(raw)) {
		texts = append(texts, strings.TrimSpace(strings.SplitN(line, " ", 4)[3]))
	}
	return strings.Join(texts, " ")
}

// talker is a container with stdin and output, of which the daemon dies with
// one line in hand. What it returns is the container's end of its stdin.
func (r *rig) talker(id string) (stdin *os.File) {
	r.Helper()
	in := r.fifo(id + "-in")
	stdin = r.end(in, os.O_RDONLY|unix.O_NONBLOCK)
	opts := createOpts(criSpec)
	opts.IO.Stdin, opts.IO.Stdout, opts.IO.Stderr = in, r.fifo(id+"-out"), ""
	t, err := r.Create(r.ctx, id, opts)
	r.must(err)
	r.must(t.Start(r.ctx))
	r.entry(id, "one")
	r.agent.kept[id] = "one\ntwo\n"
	return stdin
}

// An agent that does not answer at first is tried until it does, before the CRI
// plugin reads output.
func TestAgentThatFailsOnce(t *testing.T) {
	for name, fail := range map[string]func(*rig){
		"agent":    func(r *rig) { r.pods.deaf = 2 },
		"retained": func(r *rig) { r.agent.on("retained", func() { r.agent.on("retained", nil); r.agent.hangUp(false) }) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			stdin := r.talker("c")
			r.crash(func() { fail(r) })
			if got := r.logged("c"); got != "one two" {
				t.Errorf("log %q", got)
			}
			if ends(stdin) {
				t.Error("stdin ends")
			}
		})
	}
}

// The log of a task whose agent is late is the CRI plugin's by then: it is not
// completed. The rest is as with any other.
func TestAgentThatIsLate(t *testing.T) {
	r := newRig(t)
	stdin := r.talker("c")
	begin, cancel := context.WithTimeout(r.ctx, 50*time.Millisecond)
	defer cancel()
	r.begin = begin
	r.crash(func() { r.agent.hangUp(true) })
	if ends(stdin) {
		t.Error("stdin ends while the agent is away")
	}
	r.reader(filepath.Join(r.dir, "c-out"))
	r.entry("c", "three")
	r.agent.kept["c"] = "one\ntwo\nthree\n"
	r.agent.exit("c", "", 5)
	r.agent.rise()
	if e := r.wait(r.get("c")); e.Status != 5 {
		t.Errorf("exit %+v", e)
	}
	if got := r.logged("c"); got != "one three" {
		t.Errorf("log %q", got)
	}
	if !ends(stdin) {
		t.Error("stdin does not end with the process")
	}
}
