package hold

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// dial is a connection that can say anything.
func dial(t testing.TB, path string) wire {
	t.Helper()
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Net: "unixpacket", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return wire{conn}
}

// hostile is what no peer sends: bytes, and how many descriptors with them.
var hostile = []struct {
	name  string
	bytes string
	fds   int
}{
	{"no JSON", "hello", 0},
	{"no JSON with a descriptor", "hello", 1},
	{"empty", "", 0},
	{"empty with a descriptor", "", 1},
	{"unknown op", `{"op":"take","key":"a"}`, 0},
	{"no op", `{}`, 0},
	{"hold without a descriptor", `{"op":"hold","key":"a"}`, 0},
	{"hold with two", `{"op":"hold","key":"a"}`, 2},
	{"hold with many", `{"op":"hold","key":"a"}`, 200},
	{"hold without a key", `{"op":"hold"}`, 1},
	{"hold with a long key", `{"op":"hold","key":"` + strings.Repeat("k", maxKey+1) + `"}`, 1},
	{"hold with a bad key", `{"op":"hold","key":"\u0000"}`, 1},
	{"done with a descriptor", `{"op":"done"}`, 1},
	{"drop with a descriptor", `{"op":"drop","key":"a"}`, 1},
	{"long", `{"op":"hold","key":"a"` + strings.Repeat(" ", maxMessage) + `}`, 1},
	{"deep", strings.Repeat("[", maxMessage), 0},
	{"two values", `{"op":"done"}{"op":"done"}`, 0},
}

// sendRaw returns an error when the peer is gone.
func sendRaw(w wire, b string, fds int) error {
	var rights []byte
	if fds > 0 {
		list := make([]int, fds)
		for i := range list {
			list[i] = int(os.Stdin.Fd())
		}
		rights = unix.UnixRights(list...)
	}
	_, _, err := w.conn.WriteMsgUnix([]byte(b), rights, nil)
	return err
}

func TestHolderDisconnectsAHostileDaemon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	h, k := listen(t, path), keeper(t)
	before := count(t)
	for _, tt := range hostile {
		t.Run(tt.name, func(t *testing.T) {
			c := dial(t, path)
			defer c.conn.Close()
			if err := sendRaw(c, tt.bytes, tt.fds); err != nil {
				t.Fatal(err)
			}
			if m, _, err := c.receive(); err == nil {
				t.Errorf("worker answered %+v", m)
			}
		})
	}
	for _, m := range []message{{Op: opDrop, Key: "a"}, {Op: opDone}} { // both after a done
		c := dial(t, path)
		if err := c.send(message{Op: opDone}, -1); err != nil {
			t.Fatal(err)
		}
		if m, _, err := c.receive(); err != nil || m.Op != opDone {
			t.Errorf("worker answered %+v, %v", m, err)
		}
		if err := c.send(m, -1); err != nil {
			t.Fatal(err)
		}
		if m, _, err := c.receive(); err == nil {
			t.Errorf("worker answered %+v", m)
		}
		c.conn.Close()
	}
	connect(t, k, path).Close() // it is none the worse
	if n := len(h.table.keys("")); n != 0 {
		t.Errorf("worker holds %d descriptors", n)
	}
	<-k.link.Done()
	// The session on the worker's side has ended too when its socket is closed.
	connect(t, k, path)
	if after := count(t); after != before+2 {
		t.Errorf("%d descriptors, had %d", after, before+2)
	}
}

func TestKeeperDisconnectsAHostileWorker(t *testing.T) {
	for _, tt := range hostile {
		for _, greeted := range []bool{false, true} {
			name := tt.name + ", greeting"
			if greeted {
				name = tt.name + ", later"
			}
			t.Run(name, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "s")
				l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: path})
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				k := keeper(t)
				before := count(t)
				worker := make(chan error)
				go func() {
					conn, err := l.AcceptUnix()
					if err != nil {
						worker <- err
						return
					}
					w := wire{conn}
					if _, _, err = w.receive(); err == nil && greeted {
						err = w.send(message{Op: opDone}, -1)
					}
					if err == nil {
						err = sendRaw(w, tt.bytes, tt.fds)
					}
					_, _, _ = w.receive() // until it hangs up
					conn.Close()
					worker <- err
				}()
				link, err := k.Connect(bounded(t), path)
				if greeted && err == nil {
					done(t, link)
					err = link.Err()
				}
				if err == nil && tt.bytes != "" { // an empty packet looks like the end
					t.Error("no error")
				}
				if err := <-worker; err != nil {
					t.Error(err)
				}
				expectKeys(t, k.Keys())
				if after := count(t); after != before {
					t.Errorf("%d descriptors, had %d", after, before)
				}
			})
		}
	}
}

// A peer without descriptors left gets the packet without its descriptor.
func TestOutOfDescriptors(t *testing.T) {
	a, b := pair(t)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	serr := a.send(message{Op: opHold, Key: "a"}, int(os.Stdin.Fd()))
	_, _, err := b.receive()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if serr != nil || !errdefs.IsResourceExhausted(err) {
		t.Errorf("got %v and %v", serr, err)
	}
}

// pair is a connection.
func pair(t testing.TB) (a, b wire) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, w := range []*wire{&a, &b} {
		file := os.NewFile(uintptr(fds[i]), "socket")
		conn, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		w.conn = conn.(*net.UnixConn)
	}
	return a, b
}

func FuzzParse(f *testing.F) {
	for _, tt := range hostile {
		f.Add([]byte(tt.bytes))
	}
	f.Add([]byte(`{"op":"hold","key":"ns/c//pidfd"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b)
		if err != nil {
			return
		}
		if m.Op != opDone && checkKey(m.Key) != nil {
			t.Errorf("%q gave %+v", b, m)
		}
	})
}

// FuzzReceive sends any packet with some descriptors: none may leak.
func FuzzReceive(f *testing.F) {
	for _, tt := range hostile {
		f.Add([]byte(tt.bytes), uint8(tt.fds))
	}
	f.Fuzz(func(t *testing.T, b []byte, fds uint8) {
		if len(b) > 2*maxMessage {
			return
		}
		x, y := pair(t)
		before := count(t)
		if err := sendRaw(x, string(b), int(fds)%250); err != nil {
			t.Fatal(err)
		}
		_, fd, err := y.receive()
		if err == nil && fd >= 0 {
			unix.Close(fd)
		}
		if after := count(t); after != before {
			t.Errorf("%d descriptors, had %d", after, before)
		}
	})
}
