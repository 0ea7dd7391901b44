package stdio

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

func retained(t *testing.T, sio IO) (stdout, stderr *api.Output) {
	t.Helper()
	resp, err := sio.(interface {
		Retained() (*api.RetainedResponse, error)
	}).Retained()
	if err != nil {
		t.Fatal(err)
	}
	return resp.Stdout, resp.Stderr
}

func TestRetain(t *testing.T) {
	for _, terminal := range []bool{false, true} {
		h := host(t)
		out, errs := mkfifo(t, "out"), mkfifo(t, "err")
		stdout := read2end(t, out)
		cfg := Config{Stdout: out, Retain: true, Terminal: terminal}
		const script = "yes 123456789 | head -c 300000; echo error >&2"
		want := strings.Repeat("123456789\n", 30000)
		stderr := make(<-chan []byte)
		if terminal {
			want += "error\n"
		} else {
			cfg.Stderr = errs
			stderr = read2end(t, errs)
		}
		sio := open(t, h, cfg)
		if terminal {
			cmd, _ := startTerminal(t, sio, script)
			wait(t, cmd)
		} else {
			wait(t, start(t, sio, script, nil))
		}
		exited(t, sio)
		expect(t, stdout, want)
		o, e := retained(t, sio)
		if len(o.Data) < 128<<10 || !strings.HasSuffix(want, string(o.Data)) || o.Complete {
			t.Errorf("terminal %v: %d bytes of stdout are retained, complete %v", terminal, len(o.Data), o.Complete)
		}
		if terminal {
			continue
		}
		expect(t, stderr, "error\n")
		if string(e.Data) != "error\n" || !e.Complete {
			t.Errorf("of stderr is retained %q, complete %v", e.Data, e.Complete)
		}
	}
}

// The agent is killed, the process writes its last words and exits, and the
// next agent comes. The spool keeps them as long as somebody has it open: the
// agent has the daemon hold it.
func TestRetainOutlivesTheAgent(t *testing.T) {
	first, second := host(t), host(t)
	in, out := mkfifo(t, "in"), mkfifo(t, "out")
	all := read2end(t, out)
	cfg := Config{Stdin: in, Stdout: out, Retain: true}
	sio, err := first.Open(bounded(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	heldOut, err := os.OpenFile(out, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	heldSpool, err := os.OpenFile(Spool(out), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer heldSpool.Close()
	cmd := start(t, sio, "echo one; read x; echo two", nil)
	w, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	p := sio.(*process)
	if err := p.ends[1].stream.Close(); err != nil {
		t.Fatal(err)
	}
	p.ends[1].stream, p.ends[1].spool = nil, ""
	if err := sio.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString("\n"); err != nil {
		t.Fatal(err)
	}
	wait(t, cmd)
	again, err := second.Reopen(bounded(t), cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	exited(t, again)
	<-again.(*process).ends[1].stream.Drained()
	if o, _ := retained(t, again); !strings.HasSuffix(string(o.Data), "two\n") {
		t.Errorf("%q is retained", o.Data)
	}
	heldOut.Close()
	expect(t, all, "one\ntwo\n")
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}
