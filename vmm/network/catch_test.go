package network

import (
	"io"
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestCatch(t *testing.T) {
	b := newBed(t)
	files := countFiles(t)
	c, err := NewCatch(b.pod)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := c.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, conn.LocalAddr().String())
			conn.Close()
		}
	}()
	dial := func(path, address string) (answer string, err error) {
		err = inside(path, func(*netlink.Handle) error {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				return err
			}
			defer conn.Close()
			text, err := io.ReadAll(conn)
			answer = string(text)
			return err
		})
		return answer, err
	}
	for _, address := range []string{"127.0.0.1:1", "127.0.0.1:65535", "127.5.6.7:80"} {
		if got, err := dial(b.pod, address); got != address {
			t.Errorf("dialed %s, got %q, %v", address, got, err)
		}
	}
	if got, err := dial(b.pod, podIP+":80"); err == nil {
		t.Errorf("a connection to the pod's address was taken: %q", got)
	}
	if got, err := dial(b.host, "127.0.0.1:80"); err == nil {
		t.Errorf("a connection in another namespace was taken: %q", got)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := dial(b.pod, "127.0.0.1:80"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("dialed after the end: %v", err)
	}
	if after := countFiles(t); after != files {
		t.Errorf("%d open files, were %d", after, files)
	}
}

func TestCatchNowhere(t *testing.T) {
	files := countFiles(t)
	if _, err := NewCatch("/no/such/netns"); err == nil {
		t.Error("no error")
	}
	if after := countFiles(t); after != files {
		t.Errorf("%d open files, were %d", after, files)
	}
}
