package qemu

import (
	"net"
	"os"
	"strings"
	"testing"

	"github.com/digitalocean/go-qemu/qmp"
	"golang.org/x/sys/unix"
)

// FuzzSession is for what QEMU says, which a guest may have broken into.
func FuzzSession(f *testing.F) {
	f.Add(greeting + fine + deleted + fine)
	f.Add(greeting + fine + stop + taken)
	f.Add(greeting + fine + missing)
	f.Add(greeting + fine + fine + deleted)
	f.Add(greeting + fine + `{"return": []}` + `{"event": 1}`)
	f.Add(greeting + strings.Repeat(stop, maxEvents+2) + fine + fine)
	f.Add(`{"QMP": null}` + fine)
	f.Add(`{"QMP": {}, "return": {}, "error": {}, "event": "DEVICE_DELETED", "data": {"device": {}}}`)
	f.Add(`[` + strings.Repeat(`[`, 20_000))
	f.Fuzz(func(t *testing.T, text string) {
		s := said(t, text)
		if err := s.greet(t.Context()); err != nil {
			return
		}
		if !strings.Contains(strings.ToUpper(text), "QMP") && !strings.Contains(text, `\u`) {
			t.Errorf("taken for a greeting: %q", text)
		}
		var status map[string]any
		_ = s.run(t.Context(), "query-status", nil, &status)
		_ = s.unplug(t.Context(), "disk")
		_, _ = s.await(t.Context(), func(e qmp.Event) bool { return e.Event == "RESET" })
		if n := len(s.events); n > maxEvents {
			t.Errorf("%d events are kept", n)
		}
	})
}

// said is a session with a QEMU that says that, whatever it is told, and ends.
func said(t *testing.T, text string) *session {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "")
		c, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		ends[i] = c.(*net.UnixConn)
	}
	go func() {
		_, _ = ends[1].Write([]byte(text))
		_ = ends[1].CloseWrite()
	}()
	return newSession(ends[0])
}
