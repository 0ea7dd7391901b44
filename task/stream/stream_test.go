package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/task/stdio"
)

const patience = 20 * time.Second

// rig is a guest and a host on one machine, with a unix socket between them.
type rig struct {
	*testing.T
	dir   string
	guest *Guest
	host  *Host
	addr  string
	ctx   context.Context

	mu    sync.Mutex
	conns []net.Conn
	cut   *frail // what the connections take, nil for any
}

func newRig(t *testing.T) *rig {
	r := &rig{T: t, dir: t.TempDir()}
	var cancel context.CancelFunc
	r.ctx, cancel = context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	var err error
	r.guest, err = NewGuest(r.opener(), filepath.Join(r.dir, "guest"))
	r.must(err)
	r.host = NewHost(r.opener())
	r.addr = filepath.Join(r.dir, "socket")
	l, err := net.Listen("unix", r.addr)
	r.must(err)
	served := make(chan error)
	go func() { served <- r.guest.Serve(l) }()
	t.Cleanup(func() { l.Close(); <-served })
	return r
}

func (r *rig) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func (r *rig) opener() *stdio.Host {
	reaper, err := pidfd.NewReaper()
	r.must(err)
	h, err := stdio.NewHost(reaper)
	r.must(err)
	r.Cleanup(func() { r.must(errors.Join(h.Close(), reaper.Close())) })
	return h
}

// Done implements Source.
func (r *rig) Done() <-chan struct{} { return nil }

// Stream implements Source.
func (r *rig) Stream(ctx context.Context) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", r.addr)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns = append(r.conns, c)
	if r.cut != nil {
		return &frail{Conn: c, in: r.cut.in, out: r.cut.out}, nil
	}
	return c, nil
}

// frail is a connection that breaks.
type frail struct {
	net.Conn
	mu      sync.Mutex
	in, out int // bytes that it takes yet
}

var errBroken = errors.New("broken")

func (f *frail) spend(left *int, n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n = min(n, *left)
	*left -= n
	if *left == 0 {
		f.Close()
	}
	return n
}

func (f *frail) Read(b []byte) (int, error) {
	f.mu.Lock()
	b = b[:min(len(b), f.in)]
	f.mu.Unlock()
	if len(b) == 0 {
		return 0, errBroken
	}
	n, err := f.Conn.Read(b)
	f.spend(&f.in, n)
	return n, err
}

func (f *frail) Write(b []byte) (int, error) {
	f.mu.Lock()
	n := min(len(b), f.out)
	f.mu.Unlock()
	n, err := f.Conn.Write(b[:n])
	f.spend(&f.out, n)
	if err == nil && n < len(b) {
		err = errBroken
	}
	return n, err
}

func (r *rig) fifo(name string) string {
	path := filepath.Join(r.dir, name)
	r.must(unix.Mkfifo(path, 0o600))
	return path
}

// reader is a client that reads a FIFO to its end.
func (r *rig) reader(path string) <-chan string {
	all := make(chan string, 1)
	go func() {
		b, err := os.ReadFile(path)
		if err != nil {
			r.Error(err)
		}
		all <- string(b)
	}()
	return all
}

func (r *rig) expect(what string, all <-chan string, want string) {
	r.Helper()
	select {
	case got := <-all:
		if got != want {
			r.Errorf("%s: %d bytes %.60q, want %d %.60q", what, len(got), got, len(want), want)
		}
	case <-r.ctx.Done():
		r.Fatalf("%s does not end", what)
	}
}

// run starts a script as a process of the guest.
func (r *rig) run(cfg stdio.Config, script string) (stdio.IO, *exec.Cmd) {
	r.Helper()
	sio, err := r.guest.Open(r.ctx, cfg)
	r.must(err)
	r.Cleanup(func() { r.must(sio.Close()) })
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = files(sio)
	r.must(cmd.Start())
	sio.Started()
	r.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return sio, cmd
}

func files(sio stdio.IO) (io.Reader, io.Writer, io.Writer) {
	in, out, errs := sio.Files()
	return in, out, errs
}

func (r *rig) end(sio stdio.IO, cmd *exec.Cmd) {
	r.Helper()
	stop := context.AfterFunc(r.ctx, func() { _ = cmd.Process.Kill() })
	r.must(cmd.Wait())
	stop()
	r.must(sio.Exited(r.ctx))
}

func (r *rig) open(cfg stdio.Config) *Carrier {
	r.Helper()
	c, err := r.host.Open(r.ctx, cfg)
	r.must(err)
	r.Cleanup(func() { r.must(c.Close()) })
	return c
}

func (r *rig) drained(c *Carrier) {
	r.Helper()
	if err := c.Drain(r.ctx); err != nil {
		r.Fatalf("output does not end: %v", err)
	}
}

func numbers(from, to int) string {
	var b strings.Builder
	for i := from; i <= to; i++ {
		fmt.Fprintln(&b, i)
	}
	return b.String()
}

func TestOutput(t *testing.T) {
	r := newRig(t)
	cfg := stdio.Config{Namespace: "n", Container: "c", Stdout: r.fifo("out"), Stderr: r.fifo("err")}
	stdout, stderr := r.reader(cfg.Stdout), r.reader(cfg.Stderr)
	c := r.open(cfg)
	sio, cmd := r.run(cfg, "seq 1 100000; seq 5 90000 >&2")
	c.Attach(r, Places{})
	r.end(sio, cmd)
	r.expect("stdout", stdout, numbers(1, 100000))
	r.expect("stderr", stderr, numbers(5, 90000))
	r.drained(c)
	if left, _ := os.ReadDir(r.guest.dir); len(left) > 0 {
		t.Errorf("left in the guest: %v", left)
	}
}

// Every byte comes once however often connections break, and wherever.
func TestBrokenConnections(t *testing.T) {
	for _, cut := range []*frail{
		{in: 17_000, out: 1000}, {in: 50_000, out: 1000}, {in: 49_182, out: 1000},
		{in: 1 << 30, out: 23}, {in: 1 << 30, out: 27}, {in: 1 << 30, out: 50},
	} {
		t.Run(fmt.Sprint(cut.in, cut.out), func(t *testing.T) {
			const n = 30_000
			r := newRig(t)
			r.cut = cut
			cfg := stdio.Config{Namespace: "n", Container: "c", Exec: "e", Stdout: r.fifo("out")}
			stdout := r.reader(cfg.Stdout)
			c := r.open(cfg)
			sio, cmd := r.run(cfg, fmt.Sprint("seq 1 ", n))
			c.Attach(r, Places{})
			r.end(sio, cmd)
			r.expect("stdout", stdout, numbers(1, n))
			r.mu.Lock()
			defer r.mu.Unlock()
			if len(r.conns) < 2 {
				t.Error("no connection broke")
			}
		})
	}
}

// The next daemon goes on where one ended that is known to have delivered all
// it was sent.
func TestNextDaemon(t *testing.T) {
	r := newRig(t)
	cfg := stdio.Config{Namespace: "n", Container: "c", Stdin: r.fifo("in"), Stdout: r.fifo("out")}
	out, err := os.OpenFile(cfg.Stdout, os.O_RDWR, 0)
	r.must(err)
	defer out.Close()
	in, err := os.OpenFile(cfg.Stdin, os.O_RDWR, 0)
	r.must(err)
	defer in.Close()
	first := r.open(cfg)
	sio, cmd := r.run(cfg, "echo one; read x; echo $x; read x; echo $x")
	first.Attach(r, Places{})
	line := func(want string) {
		t.Helper()
		b := make([]byte, 100)
		n, err := out.Read(b)
		r.must(err)
		if string(b[:n]) != want {
			t.Errorf("read %q, want %q", b[:n], want)
		}
	}
	line("one\n")
	_, err = in.WriteString("two\n")
	r.must(err)
	line("two\n")
	r.must(first.Close())
	_, err = in.WriteString("three\n")
	r.must(err)
	next, err := r.host.Reopen(r.ctx, cfg)
	r.must(err)
	defer next.Close()
	next.Attach(r, Places{})
	line("three\n")
	r.end(sio, cmd)
	r.drained(next)
}

// retained is what the guest hands over of a container's stdout.
func (r *rig) retained(sio stdio.IO) *api.RetainedResponse {
	r.Helper()
	resp, err := sio.(interface {
		Retained() (*api.RetainedResponse, error)
	}).Retained()
	r.must(err)
	return resp
}

// What a daemon had in hand that died is retained, and what was handed over does
// not come again.
func TestRetained(t *testing.T) {
	r := newRig(t)
	cfg := stdio.Config{Namespace: "n", Container: "c", Stdin: r.fifo("in"), Stdout: r.fifo("out"), Retain: true}
	in, err := os.OpenFile(cfg.Stdin, os.O_RDWR, 0)
	r.must(err)
	defer in.Close()
	stdout := r.reader(cfg.Stdout)
	first := r.open(cfg)
	sio, cmd := r.run(cfg, "seq 1 1000; read x; seq 1001 2000; read x; seq 2001 3000")
	first.Attach(r, Places{})
	r.must(first.Close())
	<-stdout // whatever it was: this daemon did not log it

	if _, err := in.WriteString("\n"); err != nil {
		t.Fatal(err)
	}
	stdout = r.reader(cfg.Stdout)
	next, err := r.host.Reopen(r.ctx, cfg)
	r.must(err)
	defer next.Close()
	got := r.retained(sio)
	if got.Ended || !got.Stdout.Complete || got.Stderr != nil {
		t.Errorf("ended %t, complete %t, stderr %v", got.Ended, got.Stdout.Complete, got.Stderr)
	}
	next.Attach(r, Places{Stdout: got.Stdout.End})
	if _, err := in.WriteString("\n"); err != nil {
		t.Fatal(err)
	}
	r.end(sio, cmd)
	r.drained(next)
	rest := <-stdout
	if all := string(got.Stdout.Data) + rest; all != numbers(1, 3000) {
		t.Errorf("%d bytes handed over and %d sent: together %.100q", len(got.Stdout.Data), len(rest), all)
	}
	// Now that all is delivered it is still there, for a log.
	got = r.retained(sio)
	if !got.Ended || !got.Stdout.Complete || string(got.Stdout.Data) != numbers(1, 3000) {
		t.Errorf("ended %t, complete %t, %d bytes", got.Ended, got.Stdout.Complete, len(got.Stdout.Data))
	}
}

// Nobody reads what an exited process has left in its FIFO, once it is asked for.
func TestRetainedOfAnExited(t *testing.T) {
	r := newRig(t)
	cfg := stdio.Config{Namespace: "n", Container: "c", Stdout: "host's", Retain: true}
	sio, err := r.guest.Open(r.ctx, cfg)
	r.must(err)
	defer sio.Close()
	_, out, _ := sio.Files()
	want := bytes.Repeat([]byte("0123456789abcdef"), (window+60<<10)/16)
	_, err = out.Write(want) // more than the backlog takes
	r.must(err)
	sio.Started()
	r.must(sio.Exited(r.ctx))
	got := r.retained(sio)
	if !got.Ended || !bytes.Equal(got.Stdout.Data, want) {
		t.Errorf("%d bytes, want %d", len(got.Stdout.Data), len(want))
	}
}

// A guest keeps little of what nobody reads, and its process waits.
func TestBackpressure(t *testing.T) {
	r := newRig(t)
	cfg := stdio.Config{Namespace: "n", Container: "c", Stdout: r.fifo("out")}
	out, err := os.OpenFile(cfg.Stdout, os.O_RDWR, 0)
	r.must(err)
	defer out.Close()
	c := r.open(cfg)
	sio, cmd := r.run(cfg, "seq 1 200000")
	c.Attach(r, Places{})
	o := sio.(*process).ends[stdout].(*output)
	o.mu.Lock()
	for o.log.room() > 0 {
		o.changed.Wait()
	}
	if len(o.log.data) > window+step {
		t.Errorf("%d bytes", len(o.log.data))
	}
	o.mu.Unlock()
	all := make(chan string, 1)
	go func() {
		var b bytes.Buffer
		_, _ = io.CopyN(&b, out, int64(len(numbers(1, 200000))))
		all <- b.String()
	}()
	r.end(sio, cmd)
	r.expect("stdout", all, numbers(1, 200000))
}

func TestStdin(t *testing.T) {
	r := newRig(t)
	cfg := stdio.Config{Namespace: "n", Container: "c", Stdin: r.fifo("in"), Stdout: r.fifo("out")}
	stdout := r.reader(cfg.Stdout)
	c := r.open(cfg)
	sio, cmd := r.run(cfg, "cat")
	c.Attach(r, Places{})
	in, err := os.OpenFile(cfg.Stdin, os.O_WRONLY, 0)
	r.must(err)
	_, err = in.WriteString(numbers(1, 100000))
	r.must(err)
	r.must(c.CloseStdin())
	r.must(sio.CloseStdin()) // the agent's
	_, err = in.WriteString("and more\n")
	r.must(err)
	r.must(in.Close())
	r.end(sio, cmd)
	r.expect("stdout", stdout, numbers(1, 100000)+"and more\n")
}

// A process that reads no more is none the worse for what is sent to it, and who
// writes that is told.
func TestStdinOfAnExited(t *testing.T) {
	r := newRig(t)
	cfg := stdio.Config{Namespace: "n", Container: "c", Stdin: r.fifo("in"), Stdout: r.fifo("out")}
	stdout := r.reader(cfg.Stdout)
	c := r.open(cfg)
	sio, cmd := r.run(cfg, "read x; echo $x")
	c.Attach(r, Places{})
	in, err := os.OpenFile(cfg.Stdin, os.O_WRONLY, 0)
	r.must(err)
	defer in.Close()
	_, err = in.WriteString("one\n")
	r.must(err)
	r.end(sio, cmd)
	r.expect("stdout", stdout, "one\n")
	for err == nil {
		_, err = in.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.EPIPE) {
		t.Errorf("writer sees %v", err)
	}
}

func TestSameOutput(t *testing.T) {
	r := newRig(t)
	path := r.fifo("out")
	cfg := stdio.Config{Namespace: "n", Container: "c", Stdout: path, Stderr: path}
	stdout := r.reader(path)
	c := r.open(cfg)
	sio, cmd := r.run(cfg, "echo one; echo two >&2; echo three")
	c.Attach(r, Places{})
	r.end(sio, cmd)
	r.expect("both", stdout, "one\ntwo\nthree\n")
}

func TestLogFile(t *testing.T) {
	r := newRig(t)
	path := filepath.Join(r.dir, "log")
	cfg := stdio.Config{Namespace: "n", Container: "c", Stdout: "file://" + path}
	c := r.open(cfg)
	sio, cmd := r.run(cfg, "seq 1 50000")
	c.Attach(r, Places{})
	r.end(sio, cmd)
	r.drained(c)
	if b, err := os.ReadFile(path); err != nil || string(b) != numbers(1, 50000) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// A stream that the guest does not have ends at once.
func TestUnknown(t *testing.T) {
	r := newRig(t)
	cfg := stdio.Config{Namespace: "n", Container: "none", Stdout: r.fifo("out")}
	stdout := r.reader(cfg.Stdout)
	c := r.open(cfg)
	c.Attach(r, Places{})
	r.expect("stdout", stdout, "")
}
