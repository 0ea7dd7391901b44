package vmm

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// socketDir is a directory whose path is longer than a unix socket's may be.
func socketDir(t *testing.T) string {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// device answers each connection by the next script: what it writes after it
// has read a line. "" is nothing for ever, and "-" closes.
func device(t *testing.T, scripts ...string) (h hybrid, lines chan string) {
	h = hybrid{path: filepath.Join(socketDir(t), "v")}
	l, err := Listen(h.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	lines = make(chan string, len(scripts))
	go func() {
		for _, script := range scripts {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			b := make([]byte, 64)
			n, _ := c.Read(b)
			lines <- string(b[:n])
			switch script {
			case "":
			case "-":
				c.Close()
			default:
				_, _ = io.WriteString(c, script)
			}
		}
	}()
	return h, lines
}

func TestHybridDial(t *testing.T) {
	for name, test := range map[string]struct {
		script string
		says   string // of the error; empty if there is none
		class  func(error) bool
	}{
		"OK with port":    {script: "OK 7\nrest"},
		"OK alone":        {script: "OK\nrest"},
		"nobody listens":  {script: "-", says: "does not listen", class: errdefs.IsUnavailable},
		"refusal":         {script: "NO 7\n", says: "NO 7", class: errdefs.IsUnavailable},
		"begins as OK":    {script: "OKAY\n", says: "OKAY", class: errdefs.IsUnavailable},
		"no end of line":  {script: strings.Repeat("x", 1000), says: "answer", class: errdefs.IsUnknown},
		"nothing at once": {script: "\n", says: `""`, class: errdefs.IsUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			h, lines := device(t, test.script)
			c, err := h.Dial(t.Context(), 7)
			if line := <-lines; line != "CONNECT 7\n" {
				t.Errorf("request %q", line)
			}
			if test.says != "" {
				if err == nil || !strings.Contains(err.Error(), test.says) || !test.class(err) {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			b := make([]byte, 4)
			if _, err := io.ReadFull(c, b); err != nil || string(b) != "rest" {
				t.Errorf("after the handshake: %q, %v", b, err)
			}
		})
	}
}

// A handshake that got lost is made once more.
func TestHybridDialStalls(t *testing.T) {
	h, lines := device(t, "OK", "OK 7\n")
	c, err := h.Dial(t.Context(), 7)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if len(lines) != 2 {
		t.Errorf("%d attempts", len(lines))
	}
	h, _ = device(t, "", "", "")
	began := time.Now()
	if _, err := h.Dial(t.Context(), 7); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if took := time.Since(began); took > 3*handshakeTime {
		t.Errorf("it took %v", took)
	}
}

func TestHybridDialCanceled(t *testing.T) {
	h, lines := device(t, "")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-lines
		cancel()
	}()
	if _, err := h.Dial(ctx, 7); err == nil || ctx.Err() == nil {
		t.Errorf("error %v", err)
	}
	h = hybrid{path: filepath.Join(t.TempDir(), "none")}
	if _, err := h.Dial(t.Context(), 7); !errdefs.IsUnavailable(err) {
		t.Errorf("without a device: %v", err)
	}
}

// A socket of an earlier daemon is in nobody's way.
func TestHybridListen(t *testing.T) {
	h := hybrid{path: filepath.Join(socketDir(t), "v")}
	for range 2 {
		l, err := h.Listen(1024)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			c, err := Dial(t.Context(), h.path+"_1024")
			if err == nil {
				c.Close()
			}
		}()
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}

func TestHello(t *testing.T) {
	good := string(api.Hello())
	for name, test := range map[string]struct {
		text  string
		class func(error) bool
	}{
		"good":           {good, func(err error) bool { return err == nil }},
		"more than that": {good + "more", func(err error) bool { return err == nil }},
		"cut off":        {good[:len(good)-1], errdefs.IsDataLoss},
		"empty":          {"", errdefs.IsDataLoss},
		"other protocol": {good[:len(good)-1] + "\xff", errdefs.IsFailedPrecondition},
		"other program":  {"SSH-2.0-OpenSSH_9.2", errdefs.IsFailedPrecondition},
	} {
		if err := readHello(strings.NewReader(test.text)); !test.class(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A guest may send anything.
func FuzzHello(f *testing.F) {
	f.Add(api.Hello())
	f.Add([]byte("kuasar"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := readHello(strings.NewReader(string(b))); (err == nil) != strings.HasPrefix(string(b), string(api.Hello())) {
			t.Errorf("%q: %v", b, err)
		}
	})
}

// FuzzConnect is for what the other end of hybrid vsock says.
func FuzzConnect(f *testing.F) {
	f.Add([]byte("OK 7\n"))
	f.Add([]byte("NO\n"))
	f.Add([]byte(strings.Repeat("x", 64)))
	f.Fuzz(func(t *testing.T, b []byte) {
		ours, theirs := net.Pipe()
		go func() {
			_, _ = theirs.Read(make([]byte, 64))
			_, _ = theirs.Write(b)
			theirs.Close()
		}()
		err := connect(ours, 7)
		ours.Close()
		line, _, whole := strings.Cut(string(b), "\n")
		if ok := whole && len(line) <= maxReply && (line == "OK" || strings.HasPrefix(line, "OK ")); ok != (err == nil) {
			t.Errorf("%q: %v", b, err)
		}
	})
}
