package forward

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// guest serves on a unix socket; dial reaches it.
func guest(t *testing.T) (dial func(context.Context) (net.Conn, error)) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- Serve(l) }()
	t.Cleanup(func() {
		l.Close()
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", path) }
}

// pair is a TCP connection, as it is caught.
func pair(t *testing.T) (client, caught *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.DialTCP("tcp4", nil, l.Addr().(*net.TCPAddr)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if caught, err = l.AcceptTCP(); err != nil {
		t.Fatal(err)
	}
	if err := client.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return client, caught
}

// server answers each connection with all that it gets, once that has ended.
func server(t *testing.T, network, address string) uint16 {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Skip("no loopback address: ", err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				all, _ := io.ReadAll(c)
				_, _ = c.Write(all)
			}()
		}
	}()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func TestPass(t *testing.T) {
	for network, address := range map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0"} {
		t.Run(network, func(t *testing.T) {
			port, dial := server(t, network, address), guest(t)
			client, caught := pair(t)
			done := make(chan error)
			go func() { done <- Pass(t.Context(), caught, port, dial) }()
			want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
			go func() {
				_, _ = client.Write(want)
				_ = client.CloseWrite()
			}()
			got, err := io.ReadAll(client)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes of %d came back, %v", len(got), len(want), err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestPassToNobody(t *testing.T) {
	port := server(t, "tcp4", "127.0.0.1:0")
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := uint16(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	// answers stands for a guest that says anything.
	answers := func(b ...byte) func(context.Context) (net.Conn, error) {
		return func(context.Context) (net.Conn, error) {
			host, guest := net.Pipe()
			go func() {
				defer guest.Close()
				_, _ = io.ReadFull(guest, make([]byte, 2))
				_, _ = guest.Write(b)
			}()
			return host, nil
		}
	}
	for name, c := range map[string]struct {
		port uint16
		dial func(context.Context) (net.Conn, error)
		is   func(error) bool
	}{
		"refused":   {closed, guest(t), errdefs.IsUnavailable},
		"no guest":  {port, func(context.Context) (net.Conn, error) { return nil, errdefs.ErrUnavailable }, errdefs.IsUnavailable},
		"nonsense":  {port, answers(77), errdefs.IsDataLoss},
		"no answer": {port, answers(), func(err error) bool { return errors.Is(err, io.EOF) }},
	} {
		t.Run(name, func(t *testing.T) {
			client, caught := pair(t)
			if err := Pass(t.Context(), caught, c.port, c.dial); !c.is(err) {
				t.Errorf("got %v", err)
			}
			if n, err := client.Read(make([]byte, 1)); err == nil || err == io.EOF {
				t.Errorf("the client read %d, %v, and was not told by a reset", n, err)
			}
		})
	}
}

// A host that says nothing, or not enough, does not hold the guest's end.
func TestServeCutOff(t *testing.T) {
	dial := guest(t)
	for _, b := range [][]byte{nil, {0}} {
		c, err := dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(b)
		c.Close()
	}
}
