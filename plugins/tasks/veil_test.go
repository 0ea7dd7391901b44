package tasks

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"golang.org/x/sys/unix"
)

const criSpec = `{"process":{"args":["x"],"cwd":"/"},"root":{"path":"rootfs"},"annotations":{"io.kubernetes.cri.container-type":"container"}}`

// fifo makes one in the rig's directory.
func (r *rig) fifo(name string) string {
	r.Helper()
	path := filepath.Join(r.dir, name)
	r.must(unix.Mkfifo(path, 0o600))
	return path
}

// runCRI makes a task as the CRI plugin does, and starts it.
func (r *rig) runCRI(id string) (t runtime.Task, stdout, stderr string) {
	r.Helper()
	opts := createOpts(criSpec)
	stdout, stderr = r.fifo(id+"-out"), r.fifo(id+"-err")
	opts.IO = runtime.IO{Stdout: stdout, Stderr: stderr}
	for _, path := range []string{stdout, stderr} { // as it does before, to read
		defer r.end(path, os.O_RDONLY|unix.O_NONBLOCK).Close()
	}
	t, err := r.Create(r.ctx, id, opts)
	r.must(err)
	r.must(t.Start(r.ctx))
	return t, stdout, stderr
}

// reader opens a FIFO that has a writer.
func (r *rig) reader(path string) *os.File {
	r.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY, 0)
	r.must(err)
	r.Cleanup(func() { f.Close() })
	return f
}

// The CRI plugin learns of an exit after its restart only when it has the
// output open; that this daemon opens a guest's is not enough.
func TestExitWaitsForTheReaderAfterARestart(t *testing.T) {
	for name, r := range map[string]*rig{"host": newRig(t), "guest": newGuestRig(t)} {
		t.Run(name, func(t *testing.T) { exitWaits(t, r) })
	}
}

func exitWaits(t *testing.T, r *rig) {
	_, out, errs := r.runCRI("c")
	// What the agent wrote and has closed is lost unless somebody has it open.
	agent, err := os.OpenFile(out, os.O_RDWR, 0)
	r.must(err)
	_, err = agent.WriteString("last words")
	r.must(err)
	r.crash(nil)
	agent.Close()
	c := r.get("c")
	r.agent.exit("c", "", 4)
	r.exec(c, "e")
	r.agent.exit("c", "e", 0) // told after the other: that has arrived then
	r.log.await(3)
	if s := r.state(c); s.Status != runtime.RunningStatus {
		t.Errorf("before its output is opened: %+v", s)
	}
	stdout := r.reader(out)
	if s := r.state(c); s.Status != runtime.RunningStatus {
		t.Errorf("before all of its output is opened: %+v", s)
	}
	r.reader(errs)
	if e := r.wait(c); e.Status != 4 {
		t.Errorf("exit %+v", e)
	}
	got := make([]byte, 100)
	if n, err := stdout.Read(got); string(got[:n]) != "last words" {
		t.Errorf("output %q, %v", got[:n], err)
	}
	if n, _ := stdout.Read(got); n > 0 {
		t.Errorf("and then %q: it does not end", got[:n])
	}
	r.log.want("exec-added c/e", "exec-started c/e", "exit c/e 0", "exit c 4")
}

func TestExitBeforeARestartIsNotHidden(t *testing.T) {
	r := newRig(t)
	r.runCRI("c")
	r.crash(func() { r.agent.exit("c", "", 4) })
	if s := r.state(r.get("c")); s.Status != runtime.StoppedStatus || s.ExitStatus != 4 {
		t.Errorf("state %+v", s)
	}
	_, err := r.Delete(r.ctx, "c")
	r.must(err)
	r.clean("c")
}

// A client that does not read output may still delete the task.
func TestDeleteLiftsTheVeil(t *testing.T) {
	r := newRig(t)
	r.runCRI("c")
	r.crash(nil)
	r.agent.exit("c", "", 4)
	if e, err := r.Delete(r.ctx, "c"); err != nil || e.Status != 4 {
		t.Errorf("delete: %+v, %v", e, err)
	}
	r.clean("c")
}

func (r *rig) end(path string, flags int) *os.File {
	r.Helper()
	f, err := os.OpenFile(path, flags, 0)
	r.must(err)
	r.Cleanup(func() { f.Close() })
	return f
}

// ends says whether a FIFO's reader sees an end within a moment.
func ends(f *os.File) bool {
	_ = f.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	n, err := f.Read(make([]byte, 1))
	return n == 0 && err != nil && !os.IsTimeout(err)
}

func TestStdinIsHeldWithoutTheAgent(t *testing.T) {
	r := newRig(t)
	in := r.fifo("in")
	stdin := r.end(in, os.O_RDONLY|unix.O_NONBLOCK) // as the container
	opts := createOpts(plainSpec)
	opts.IO.Stdin = in
	c, err := r.Create(r.ctx, "c", opts)
	r.must(err)
	if ends(stdin) {
		t.Error("stdin ends although only the agent is gone")
	}
	r.crash(nil)
	if ends(stdin) {
		t.Error("stdin ends after a restart")
	}
	c = r.get("c")
	r.must(c.CloseIO(r.ctx))
	if !ends(stdin) {
		t.Error("stdin does not end at CloseIO")
	}
	stdin = r.end(in, os.O_RDONLY|unix.O_NONBLOCK)
	r.crash(nil)
	if !ends(stdin) {
		t.Error("stdin is held again after CloseIO and a restart")
	}
}

func TestStdinEndsWithTheProcess(t *testing.T) {
	r := newRig(t)
	in := r.fifo("in")
	stdin := r.end(in, os.O_RDONLY|unix.O_NONBLOCK)
	c := r.run("c")
	p, err := c.Exec(r.ctx, "e", runtime.ExecOpts{IO: runtime.IO{Stdin: in}})
	r.must(err)
	r.must(p.Start(r.ctx))
	if ends(stdin) {
		t.Error("stdin of an exec ends although it runs")
	}
	r.agent.exit("c", "e", 0)
	r.wait(p)
	if !ends(stdin) {
		t.Error("stdin does not end with the process")
	}
}

// A container that exits after its agent was asked what runs, and before it is
// asked for output, has all of that in the log: what a FIFO still has must not
// be read again.
func TestExitAmidARestart(t *testing.T) {
	r := newRig(t)
	_, out, _ := r.runCRI("c")
	r.entry("c", "one")
	agent, err := os.OpenFile(out, os.O_RDWR, 0)
	r.must(err)
	_, err = agent.WriteString("two\n")
	r.must(err)
	r.agent.kept["c"] = "one\ntwo\n"
	r.agent.on("retained", func() {
		r.agent.on("retained", nil)
		r.agent.exit("c", "", 4)
		agent.Close()
	})
	r.crash(nil)
	if got := r.logged("c"); got != "one two" {
		t.Errorf("log %q", got)
	}
	if e := r.wait(r.get("c")); e.Status != 4 { // though nobody opens its output
		t.Errorf("exit %+v", e)
	}
	rest, err := os.OpenFile(out, os.O_RDONLY|unix.O_NONBLOCK, 0)
	r.must(err)
	defer rest.Close()
	if n, _ := rest.Read(make([]byte, 100)); n > 0 {
		t.Errorf("%d bytes are read again", n)
	}
}
