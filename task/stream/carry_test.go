package stream

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd-kuasar/containerd-kuasar/task/stdio"
)

// source is a guest of which each connection is served by a function; nil
// refuses it. The last one serves all that follow.
type source struct {
	serve []func(net.Conn)
	dials atomic.Int32
	done  chan struct{}
	all   sync.WaitGroup // of serving
}

func newSource(serve ...func(net.Conn)) *source {
	return &source{serve: serve, done: make(chan struct{})}
}

func (s *source) Done() <-chan struct{} { return s.done }

func (s *source) Stream(context.Context) (net.Conn, error) {
	serve := s.serve[min(int(s.dials.Add(1)), len(s.serve))-1]
	if serve == nil {
		return nil, errBroken
	}
	host, guest := net.Pipe()
	s.all.Go(func() {
		defer guest.Close()
		_, _, _ = readRequest(guest)
		if writeAnswer(guest, answerYes, 0) == nil {
			serve(guest)
		}
	})
	return host, nil
}

// says sends one frame and waits for its count.
func says(c net.Conn, text string) {
	var b [frameSize]byte
	if writeFrame(c, &b, copy(b[headSize:], text)) == nil {
		_, _ = readCount(c)
	}
}

func ends(c net.Conn) {
	var b [frameSize]byte
	_ = writeFrame(c, &b, 0)
}

// silent holds a connection, and says nothing.
func silent(c net.Conn) { _, _ = c.Read(make([]byte, 1)) }

// A guest that does not answer for a while is asked again, as long as it is there.
func TestConnectsAgain(t *testing.T) {
	r := newRig(t)
	cfg := stdio.Config{Namespace: "n", Container: "c", Stdout: r.fifo("out")}
	stdout := r.reader(cfg.Stdout)
	c := r.open(cfg)
	c.Attach(newSource(nil, nil, nil, nil, func(c net.Conn) { says(c, "x"); ends(c) }), Places{})
	r.expect("stdout", stdout, "x")
	r.drained(c)
}

// A guest that is gone ends its streams after what came.
func TestGuestGone(t *testing.T) {
	r := newRig(t)
	cfg := stdio.Config{Namespace: "n", Container: "c", Stdout: r.fifo("out")}
	stdout := r.reader(cfg.Stdout)
	c := r.open(cfg)
	gone := newSource(func(c net.Conn) { says(c, "x") }, nil)
	close(gone.done)
	c.Attach(gone, Places{})
	r.expect("stdout", stdout, "x")
	r.drained(c)
}

// late is a stream without a file, as long as nothing comes.
func late(t *testing.T) (s *stream, exited context.CancelFunc) {
	s = &stream{name: "s", kind: stdout, left: lateTime}
	s.exited, exited = context.WithCancel(t.Context())
	return s, exited
}

// carried runs a stream to its end and returns how long that took after its
// container had exited.
func carried(t *testing.T, serve ...func(net.Conn)) time.Duration {
	s, exited := late(t)
	began := time.Now()
	time.AfterFunc(time.Hour, exited)
	guest := newSource(serve...)
	err := s.carry(t.Context(), guest)
	took := time.Since(began) - time.Hour
	guest.all.Wait()
	if err == nil || !strings.Contains(err.Error(), "its end does not come") {
		t.Errorf("error %v", err)
	}
	return took
}

// A guest that has told of a container's exit, and not of the end of its output,
// is waited for, and not without end: whether it is silent, sends too little to
// be at an end ever, or takes no connection.
func TestEndThatDoesNotCome(t *testing.T) {
	trickles := func(c net.Conn) {
		go func() { _, _ = io.Copy(io.Discard, c) }()
		for {
			again := time.NewTimer(time.Second)
			<-again.C
			if _, err := c.Write([]byte{0, 1}); err != nil {
				return
			}
		}
	}
	deaf := func(c net.Conn) { _, _ = c.Write(bytes.Repeat([]byte{0, 1, 0}, 1000)) }
	for name, test := range map[string]struct {
		serve  func(net.Conn)
		within time.Duration
	}{
		"silent":   {silent, lateTime},
		"trickles": {trickles, 2 * lateTime},
		"deaf":     {deaf, lateTime},
		"closes":   {func(net.Conn) {}, lateTries * maxDelay},
		"refuses":  {nil, lateTries * maxDelay},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if took := carried(t, test.serve); took < 0 || took > test.within {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}
